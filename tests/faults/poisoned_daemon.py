"""`florence-daemon` with an engine that pictures can do harm to: `python -m tests.faults.poisoned_daemon run …`."""

from florence_daemon import cli
from florence_daemon.engine import handle, rests

if __name__ == "__main__":
    handle.BOOT = handle.BOOT.replace("florence_daemon.engine.child", "tests.engine.poisoned_child")
    rests.BACKOFF_S = 0.2  # the waits between two engine processes are no part of the test
    cli.main()
