"""The choice among the ways to run Florence-2: device, engine, precision, checkpoint; and its loop."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

from florence_daemon.engine import decoder
from florence_daemon.engine.batching import Batching
from florence_daemon.engine.checkpoint import Checkpoint, find, open_checkpoint
from florence_daemon.engine.handle import taken_bytes
from florence_daemon.engine.memory import USUAL_TOKENS, choose_batch, free_ram_bytes, return_freed_blocks
from florence_daemon.engine.one_by_one import OneByOne
from florence_daemon.engine.preprocess import Picture
from florence_daemon.engine.proof import is_proved
from florence_daemon.engine.protocol import Answer, Ask, EngineSettings, Request, Stages
from florence_daemon.engine.work import Reply
from florence_daemon.errors import EngineError

log = logging.getLogger(__name__)

PRECISIONS = {
    "torch": ("float32", "float16", "bfloat16"),
    "transformers": ("float32", "float16", "bfloat16"),
    "openvino": ("float32", "int8"),
}
INSTALL_OPENVINO = "pip install 'florence-daemon[openvino]'"
# One of these is there when Linux has a driver for a GPU that torch can use: NVIDIA, AMD, and either under WSL.
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


class Backend(Protocol):
    """A loaded model. device: where it runs, `cpu` or `cuda:0`; precision: `float32`, `float16`, `bfloat16`, `int8`."""

    device: str
    precision: str

    @property
    def side_px(self) -> int:
        """The side of the square that the model sees."""

    def answer(self, picture: Picture, asks: Sequence[Ask]) -> tuple[list[Answer], Stages]:
        """Answer all asks about a picture, in their order; its vision part runs once.

        Raises:
            PromptError: an ask is no task, lacks its text, or its text is longer than the model can read.
        """


class Loop(Protocol):
    """Answers requests with a loaded model. in_flight: how many of them at once keep it busy.

    side_px: of the square that the model sees.
    """

    device: str

    @property
    def in_flight(self) -> int: ...

    @property
    def side_px(self) -> int: ...

    def put(self, request: Request, reply: Reply) -> None:
        """Take a request, from any thread; `reply` is told how it goes on."""

    def close(self) -> None:
        """Make `run_once` return false, from any thread; what is not answered is given up."""

    def run_once(self, timeout_s: float | None = 0.0) -> bool:
        """Take one step; false when there was none to take within this time, None being for ever."""


def open_loop(settings: EngineSettings) -> Loop:
    """Load the model, and make the loop that answers with it. Raises: as `open_backend`."""
    backend = open_backend(settings)
    return backend if isinstance(backend, Batching) else OneByOne(backend.device, backend.answer, backend.side_px)


def open_backend(settings: EngineSettings) -> Backend:
    """Find the checkpoint, download it if need be, and load it onto the device: a Batching, but for transformers.

    Raises:
        CheckpointError: it cannot be found or loaded.
        EngineError: the device, engine or precision is not available; the message names those that are.
    """
    # Before torch is imported. Its threads would spin while they wait for each other, which on cores that something
    # else uses too is most of the time: one answer on two busy cores took 1.2 to 18 s so, and takes 0.3 s asleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    device = choose_device("cpu" if settings.engine == "openvino" and settings.device == "auto" else settings.device)
    engine = choose_engine(settings.engine, settings.precision, device)
    check_precision(settings.precision, engine)
    checkpoint = open_checkpoint(find(settings.model, settings.revision, settings.offline), settings.image_size)
    precision = choose_precision(checkpoint, settings, device, engine)
    if engine == "transformers":
        return _open_transformers(checkpoint, device, precision, settings)
    backend: decoder.Backend
    if engine == "openvino":
        from florence_daemon.engine.openvino_backend import OpenVinoBackend

        return_freed_blocks()
        backend = OpenVinoBackend(checkpoint, settings, precision)
    else:
        import torch

        from florence_daemon.engine.torch_backend import TorchBackend

        backend = TorchBackend(checkpoint, device, getattr(torch, precision))
    return start_batching(backend, checkpoint, settings)


def start_batching(backend: decoder.Backend, checkpoint: Checkpoint, settings: EngineSettings) -> Batching:
    """Make the loop over a loaded backend, with a batch that fits into the memory that is left."""
    question_bytes = backend.question_bytes(settings.num_beams, min(settings.max_new_tokens, USUAL_TOKENS))
    batch = choose_batch(settings.max_batch, backend.device, _free_bytes(backend.device, settings), question_bytes)
    log.info("%d questions at once, %.0f MB each", batch, question_bytes / 1e6)
    return Batching(backend, checkpoint, settings, batch)


def choose_device(wanted: str) -> str:
    """Choose the device: `auto` takes the first GPU, else the CPU.

    Raises:
        EngineError: it is not available; the message names what is.
    """
    if wanted == "cpu" or (wanted == "auto" and not _may_have_gpu()):
        return "cpu"
    available = _available_devices()
    if wanted == "auto":
        return next((device for device in available if device != "cpu"), "cpu")
    device = "cuda:0" if wanted == "cuda" else wanted
    if device not in available:
        raise EngineError(f"The device {wanted!r} is not available; there are: auto, {', '.join(available)}")
    return device


def choose_engine(wanted: str, precision: str, device: str) -> str:
    """Choose the engine: `auto` takes openvino on a CPU where it is installed and has this precision, else torch.

    Raises:
        EngineError: openvino is not installed, or not for this device.
    """
    has_openvino = importlib.util.find_spec("openvino") is not None
    if wanted == "auto":
        suits = device == "cpu" and precision in ("auto", *PRECISIONS["openvino"])
        if precision == "int8" and suits and not has_openvino:
            raise EngineError(f"The precision int8 needs OpenVINO, which is not installed: {INSTALL_OPENVINO}")
        return "openvino" if suits and has_openvino else "torch"
    if wanted == "openvino" and not has_openvino:
        raise EngineError(f"The engine openvino is not installed: {INSTALL_OPENVINO}")
    if wanted == "openvino" and device != "cpu":
        raise EngineError(f"The engine openvino runs on the CPU, not on {device}; set model.device to cpu")
    return wanted


def check_precision(wanted: str, engine: str) -> None:
    """Check that an engine has a precision. Raises: EngineError, which names those that there are."""
    known = dict.fromkeys(precision for precisions in PRECISIONS.values() for precision in precisions)
    if wanted not in ("auto", *known):
        raise EngineError(f"The precision {wanted!r} is not known; there are: auto, {', '.join(known)}")
    if wanted not in ("auto", *PRECISIONS[engine]):
        has = ", ".join(PRECISIONS[engine])
        raise EngineError(f"The engine {engine} cannot do {wanted}, only {has}; set model.precision, or model.engine")


def choose_precision(checkpoint: Checkpoint, settings: EngineSettings, device: str, engine: str) -> str:
    """Choose the number type.

    `auto` is float16 on CUDA, where it is several times faster, and float32 elsewhere; but int8 with OpenVINO once it
    has proved itself for this checkpoint.
    """
    if settings.precision != "auto":
        return settings.precision
    if engine == "openvino" and is_proved(checkpoint, settings):
        return "int8"
    return "float16" if device.startswith("cuda") else "float32"


def _open_transformers(checkpoint: Checkpoint, device: str, precision: str, settings: EngineSettings) -> Backend:
    import torch

    with _hidden("torchvision"):
        from florence_daemon.engine.transformers_backend import TransformersBackend
    return TransformersBackend(checkpoint, device, getattr(torch, precision), settings)


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


def _may_have_gpu() -> bool:
    """Tell whether it is worth importing torch to ask; on Linux, its driver shows."""
    return not sys.platform.startswith("linux") or any(Path(path).exists() for path in GPU_DRIVERS)


def _free_bytes(device: str, settings: EngineSettings) -> int | None:
    """How much memory of the device is free for this process; None where it does not say."""
    if device == "cpu":
        free, taken, limit = free_ram_bytes(), taken_bytes(os.getpid()), settings.memory_limit_bytes
        free = None if free is None else free // settings.parts
        return free if free is None or taken is None or limit is None else max(0, min(free, limit - taken))
    if not device.startswith("cuda"):
        return None
    import torch

    return int(torch.cuda.mem_get_info(device)[0])


def gpu_bytes(device: str) -> int | None:
    """GPU memory that torch holds for this process, its reserve included, without the driver's own; None elsewhere."""
    if not device.startswith("cuda"):
        return None
    import torch

    return int(torch.cuda.memory_reserved(device))


def _available_devices() -> list[str]:
    import torch

    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return ["cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]
