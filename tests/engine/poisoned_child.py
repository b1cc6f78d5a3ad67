"""An engine process that is killed while it sees a red picture, whatever else it is at: for test_process."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from florence_daemon.engine import backend as backends
from florence_daemon.engine.batching import Batching
from florence_daemon.engine.child import main as real_main
from florence_daemon.engine.protocol import EngineSettings


def open_poisoned(settings: EngineSettings) -> Batching:
    loop = backends.open_backend(settings)
    assert isinstance(loop, Batching)
    see = loop.backend.see

    def see_until_red(pixels: NDArray[np.float32]) -> Sequence[Any]:
        red, green, _ = pixels.mean(axis=(0, 2, 3))
        if red - green > 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return see(pixels)

    loop.backend.see = see_until_red  # type: ignore[method-assign]
    return loop


def main() -> None:
    backends.open_loop = open_poisoned
    real_main()
