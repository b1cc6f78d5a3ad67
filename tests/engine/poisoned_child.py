"""An engine process that pictures can do harm to, for tests: a marker after the picture's own bytes says which.

It is the real one otherwise, and the pictures are good ones, so whatever has no marker is answered.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from florence_daemon.engine import backend as backends
from florence_daemon.engine import handle, parcel
from florence_daemon.engine.batching import Batching
from florence_daemon.engine.child import main as real_main
from florence_daemon.engine.preprocess import Picture, read_picture
from florence_daemon.engine.protocol import EngineSettings

SEGFAULT, HOG, HANG = b"A DECODER'S SEGMENTATION FAULT", b"A DECODER'S HUNGER", b"A DECODER'S ENDLESS LOOP"
BOOT = handle.BOOT.replace("florence_daemon.engine.child", "tests.engine.poisoned_child")


def read_poisoned(source: str | bytes, side_px: int | None = None, fast: bool = False) -> Picture:
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    if content.endswith(SEGFAULT):
        ctypes.string_at(0)
    if content.endswith(HOG):
        hoard = [b"\1" * 2**25 for _ in range(2**12)]  # 128 GB
        del hoard
    if content.endswith(HANG):
        ctypes.PyDLL(None).sleep(600)  # a PyDLL keeps Python's lock, so that no other thread runs either
    return read_picture(source, side_px, fast)


def open_poisoned(settings: EngineSettings) -> Batching:
    """Load the model. It dies when it sees a red picture, and hangs for ever when it sees a magenta one."""
    loop = backends.open_backend(settings)
    assert isinstance(loop, Batching)
    see = loop.backend.see

    def see_until_red(pixels: NDArray[np.float32]) -> Sequence[Any]:
        red, green, blue = pixels.mean(axis=(0, 2, 3))
        if red - max(green, blue) > 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if min(red, blue) - green > 2:
            signal.pause()
        return see(pixels)

    loop.backend.see = see_until_red  # type: ignore[method-assign]
    return loop


def main() -> None:
    backends.open_loop = open_poisoned
    parcel.read_picture = read_poisoned
    real_main()
