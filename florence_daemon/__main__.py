"""`python -m florence_daemon` is the command `florence-daemon`."""

from florence_daemon.cli import main

main()
