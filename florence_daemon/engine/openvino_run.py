"""Compiles networks for the CPU and loads what was compiled before; the one place that knows OpenVINO's settings."""

from __future__ import annotations

import mmap
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from florence_daemon.engine.openvino_form import Form
from florence_daemon.engine.openvino_quiet import ov
from florence_daemon.engine.sharing import allowed_processors

# One answer at a time with all cores. Numbers stay float32 also where a processor would offer less (AMX, a cache of
# keys and values in 8 bits): what is int8 is so because it was quantized and measured.
SETTINGS: dict[str, object] = {
    "PERFORMANCE_HINT": "LATENCY",
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
}


def compile_part(model: ov.Model | Path, blob: Path | None = None) -> ov.CompiledModel:
    """Compile a network for this machine's CPU; keep what comes out as `blob`, when that is given. Raises: OSError."""
    compiled = ov.Core().compile_model(model, "CPU", SETTINGS)
    if blob is not None:
        _write_whole(blob, compiled)
    return compiled


@dataclass(frozen=True)
class Part:
    """A network that can run. mapped: the file that its weights lie in; it must not go while the network is used."""

    network: ov.CompiledModel
    mapped: mmap.mmap | None = None


def let_go(mapped: object) -> None:
    """Give back the memory of a mapped file: what is still read there comes back from the file by itself.

    OpenVINO has made copies of the weights, laid out as it likes them. Only Linux can be told.
    """
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def load_part(form: Form, part: str, threads: int | None = None) -> Part:
    """Load a part of a form: what was compiled before, mapped from the disk, or compiled now and kept.

    threads: how many it runs with; None for as many as there are cores.

    Raises:
        RuntimeError: the compiled form is of another processor, and there is nothing to make it from.
        OSError: it cannot be written.
    """
    blob = form.blob(part)
    if blob.is_file():
        try:
            return _map(blob, threads)
        except RuntimeError:
            if not form.xml(part).is_file():
                raise
    compiled = compile_part(form.xml(part), blob)
    return Part(compiled) if threads is None else _map(blob, threads)


def _map(blob: Path, threads: int | None) -> Part:
    with blob.open("rb") as file:
        # OpenVINO wants it writable; what it might write would be this process's own.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    tensor = ov.Tensor(np.frombuffer(mapped, np.uint8), shared_memory=True)
    part = Part(ov.Core().import_model(tensor, "CPU", _settings(threads)), mapped)
    let_go(mapped)
    return part


def _settings(threads: int | None) -> dict[str, object]:
    if threads is None:
        return SETTINGS
    # Where others have the remaining processors, they would bind theirs to the same ones.
    is_shared = threads < len(allowed_processors())
    return SETTINGS | {"INFERENCE_NUM_THREADS": threads} | ({"ENABLE_CPU_PINNING": False} if is_shared else {})


def _write_whole(path: Path, compiled: ov.CompiledModel) -> None:
    """Write a file that is whole or not there."""
    handle, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(compiled.export_model().getbuffer())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
