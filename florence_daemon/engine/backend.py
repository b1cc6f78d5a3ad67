"""What every way of running Florence-2 offers, and the choice among them: device, precision, checkpoint."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, cast

from florence_daemon.engine.checkpoint import find, open_checkpoint
from florence_daemon.engine.preprocess import Picture
from florence_daemon.engine.protocol import Answer, Ask, EngineSettings, Stages
from florence_daemon.errors import EngineError

if TYPE_CHECKING:
    import torch

PRECISIONS = ("auto", "float32", "float16", "bfloat16")


class Backend(Protocol):
    """A loaded model. device: where it runs, `cpu` or `cuda:0`; precision: `float32`, `float16` or `bfloat16`."""

    device: str
    precision: str

    def answer(self, picture: Picture, asks: Sequence[Ask]) -> tuple[list[Answer], Stages]:
        """Answer all asks about a picture, in their order; its vision part runs once.

        Stages.decode_s is left at 0, for whoever read the picture to fill in.

        Raises:
            PromptError: an ask is no task, lacks its text, or its text is longer than the model can read.
        """


def open_backend(settings: EngineSettings) -> Backend:
    """Find the checkpoint, download it if need be, and load it onto the device.

    Raises:
        CheckpointError: it cannot be found or loaded.
        EngineError: the device or precision is not available; the message names those that are.
    """
    # Before torch is imported. Its threads would spin while they wait for each other, which on cores that something
    # else uses too is most of the time: one answer on two busy cores took 1.2 to 18 s so, and takes 0.3 s asleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    device = choose_device(settings.device)
    dtype = choose_precision(settings.precision, device)
    checkpoint = open_checkpoint(find(settings.model, settings.revision, settings.offline))
    if settings.engine != "transformers":
        from florence_daemon.engine.torch_backend import TorchBackend

        return TorchBackend(checkpoint, device, dtype, settings)
    with _hidden("torchvision"):
        from florence_daemon.engine.transformers_backend import TransformersBackend
    return TransformersBackend(checkpoint, device, dtype, settings)


def choose_device(wanted: str) -> str:
    """Choose the device: `auto` takes the first GPU, else the CPU.

    Raises:
        EngineError: it is not available; the message names what is.
    """
    available = _available_devices()
    if wanted == "auto":
        return next((device for device in available if device != "cpu"), "cpu")
    device = "cuda:0" if wanted == "cuda" else wanted
    if device not in available:
        raise EngineError(f"The device {wanted!r} is not available; there are: auto, {', '.join(available)}")
    return device


def choose_precision(wanted: str, device: str) -> torch.dtype:
    """Choose the number type: `auto` is float16 on CUDA, where it is several times faster, and float32 elsewhere.

    Raises:
        EngineError: there is no such precision.
    """
    import torch

    if wanted not in PRECISIONS:
        raise EngineError(f"The precision {wanted!r} is not known; there are: {', '.join(PRECISIONS)}")
    if wanted == "auto":
        return torch.float16 if device.startswith("cuda") else torch.float32
    dtype = getattr(torch, wanted)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


@contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Make a package look as if it were not installed.

    transformers imports torchvision where it finds it, which fails when it was built for another torch, as happens
    in many environments; nothing here uses it. transformers asks once and keeps the answer.
    """
    if package in sys.modules:
        yield
        return
    sys.modules[package] = cast(Any, None)
    try:
        yield
    finally:
        del sys.modules[package]


def _available_devices() -> list[str]:
    import torch

    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return ["cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]
