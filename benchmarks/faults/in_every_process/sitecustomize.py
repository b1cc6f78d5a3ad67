"""Found by every Python process that has this folder on its path, Ray's workers too: the engine is the stand-in."""

import os

if os.environ.get("FAKE_ENGINE"):
    from benchmarks.faults import fake_engine
    from florence_daemon.engine import handle

    handle.BOOT = fake_engine.BOOT
