"""The weights of a checkpoint: checks names and shapes from the files' headers, then reads them under native names.

Whatever is unknown, missing or misshapen is named: a network that loads halfway captions nonsense without an error.
torch is imported where it is used, since a check of safetensors files needs none.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florence_daemon.engine.files import find_weights
from florence_daemon.engine.layout import Layout
from florence_daemon.engine.names import (
    COSINE_TABLE,
    SHARED_EMBEDDING,
    TIED_TO_SHARED,
    TRANSPOSED,
    native_name,
    original_name,
)
from florence_daemon.engine.shapes import Shape, expected_shapes
from florence_daemon.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_LISTED = 10
# What safetensors calls torch's types.
_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
_FLOATS = (*_DTYPES, *_DTYPES.values())
# Numbers that are read before the map is closed and opened anew: 64 MiB of float32.
_PORTION = 2**24


@dataclass(frozen=True)
class _Stored:
    """A tensor as a file's header describes it."""

    file: Path
    name: str
    shape: Shape
    dtype: str

    def has(self, dtype: torch.dtype) -> bool:
        """Whether it is of this dtype."""
        return _DTYPES.get(self.dtype, self.dtype) == str(dtype).removeprefix("torch.")


def check_weights(directory: Path, layout: Layout) -> None:
    """Check that a checkpoint has every tensor of its network and no other, without reading them.

    Raises:
        CheckpointError: files are missing or broken; or tensors are missing, unknown, misshapen or no floats.
    """
    _plan(directory, layout)


def read_weights(
    directory: Path, layout: Layout, dtype: torch.dtype, device: str, joined: Mapping[str, Sequence[str]] | None = None
) -> dict[str, torch.Tensor]:
    """Read all weights under native names, as dtype on device.

    On a CPU, what has this dtype in the file stays a view of the file's memory map: read when it is used, never to be
    written to. All else is copied once, to where it stays. The embedding has the row of `<image>` also where the file
    lacks it. Its tied copies are left out. joined: tensors that become one, along their first dimension, by its name.

    Raises:
        CheckpointError: as `check_weights`.
    """
    import torch

    plan = _plan(directory, layout)
    shapes = expected_shapes(layout)
    parts = {part for names in (joined or {}).values() for part in names}
    made = dict(joined or {}) | {name: [name] for name in plan if name not in parts}
    state: dict[str, torch.Tensor] = {}
    places: dict[str, torch.Tensor] = {}  # of what is copied
    for name, names in made.items():
        is_changed = layout.is_original and name in (TRANSPOSED, SHARED_EMBEDDING)
        if device == "cpu" and names == [name] and not is_changed and plan[name].has(dtype):
            continue
        rows = [shapes[part][0] for part in names]
        image_row = 1 if is_changed and name == SHARED_EMBEDDING else 0
        state[name] = torch.empty((sum(rows) + image_row, *shapes[names[0]][1:]), dtype=dtype, device=device)
        state[name][sum(rows) :] = 0
        places |= zip(names, state[name][: sum(rows)].split(rows), strict=True)
    if layout.is_original:
        places[TRANSPOSED] = places[TRANSPOSED].T
    _copy(plan, places)
    state |= _views({name: stored for name, stored in plan.items() if name not in places})
    if COSINE_TABLE not in state:
        state[COSINE_TABLE] = _cosine_table(*shapes[COSINE_TABLE]).to(device=device, dtype=dtype)
    return state


def _copy(plan: Mapping[str, _Stored], places: Mapping[str, torch.Tensor]) -> None:
    """Read tensors to their places, some at a time: what was read of a map counts as memory until the map is closed."""
    for file in _files(plan):
        wanted = {name: plan[name] for name in places if plan[name].file == file}
        for some in _portions(wanted) if _is_mapped(file) else [wanted]:
            for name, tensor in _read_file(file, some).items():
                places[name].copy_(tensor)


def _views(wanted: Mapping[str, _Stored]) -> dict[str, torch.Tensor]:
    """Map files and give their tensors unread."""
    return {
        name: tensor
        for file in _files(wanted)
        for name, tensor in _read_file(file, {n: stored for n, stored in wanted.items() if stored.file == file}).items()
    }


def _files(plan: Mapping[str, _Stored]) -> list[Path]:
    return sorted({stored.file for stored in plan.values()})


def _portions(wanted: Mapping[str, _Stored]) -> Iterator[dict[str, _Stored]]:
    portion: dict[str, _Stored] = {}
    numbers = 0
    for name, stored in wanted.items():
        portion[name] = stored
        numbers += math.prod(stored.shape)
        if numbers >= _PORTION:
            yield portion
            portion, numbers = {}, 0
    yield portion


def _plan(directory: Path, layout: Layout) -> dict[str, _Stored]:
    """Find for every native tensor the file and the name it is stored under."""
    found: dict[str, _Stored] = {}
    twice: list[str] = []
    for stored in (stored for file in find_weights(directory) for stored in _describe(file)):
        name = native_name(stored.name) if layout.is_original else stored.name
        if name is not None and found.setdefault(name, stored) is not stored:
            twice.append(f"{stored.name} in {found[name].file.name} and {stored.file.name}")
    expected = expected_shapes(layout)
    _complain(directory, _faults(found, expected, layout) | {"Twice there": twice})
    # The shared one wins over its copies, as in the original, which ties them after loading.
    shared = next(found[name] for name in (SHARED_EMBEDDING, *TIED_TO_SHARED) if name in found)
    return {name: stored for name, stored in found.items() if name in expected} | {SHARED_EMBEDDING: shared}


def _faults(found: Mapping[str, _Stored], expected: Mapping[str, Shape], layout: Layout) -> dict[str, list[str]]:
    shapes = {**expected, **dict.fromkeys(TIED_TO_SHARED, expected[SHARED_EMBEDDING])}
    if layout.is_original:
        shapes[TRANSPOSED] = expected[TRANSPOSED][::-1]
    can_lack = {COSINE_TABLE, *TIED_TO_SHARED}
    if any(name in found for name in TIED_TO_SHARED):
        can_lack.add(SHARED_EMBEDDING)
    missing = [name for name in shapes if name not in found and name not in can_lack]
    return {
        "Missing": [original_name(name) for name in missing] if layout.is_original else missing,
        "Unknown": [stored.name for name, stored in found.items() if name not in shapes],
        "Misshapen": [
            f"{stored.name} is {_shape(stored.shape)} where {_shape(shapes[name])} is expected"
            for name, stored in found.items()
            if name in shapes and stored.shape != shapes[name]
        ],
        "Not of floats": [
            f"{stored.name} is {stored.dtype}" for name, stored in found.items() if stored.dtype not in _FLOATS
        ],
    }


def _complain(directory: Path, faults: Mapping[str, list[str]]) -> None:
    parts = [_listed(what, names) for what, names in faults.items() if names]
    if parts:
        listed = " ".join(parts)
        raise CheckpointError(f"{directory} does not hold the Florence-2 that its config.json describes. {listed}")


def _listed(what: str, names: list[str]) -> str:
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{what} ({len(names)}): {', '.join(name[:200] for name in names[:_LISTED])}{more}."


def _shape(shape: Shape) -> str:
    return "×".join(map(str, shape)) or "a single number"


def _describe(file: Path) -> list[_Stored]:
    if file.suffix == ".bin":
        return [
            _Stored(file, name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            for name, tensor in _unpickle(file).items()
        ]
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (it is no dict)
            return [_Stored(file, name, tuple(s.get_shape()), str(s.get_dtype())) for name, s in slices.items()]
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file} is not a whole safetensors file; download it again ({error})") from error


def _read_file(file: Path, wanted: Mapping[str, _Stored]) -> dict[str, torch.Tensor]:
    """Map the file and give its tensors unread; they are read as each is used."""
    if file.suffix == ".bin":
        tensors = _unpickle(file)
        return {name: tensors[stored.name] for name, stored in wanted.items()}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            return {name: opened.get_tensor(stored.name) for name, stored in wanted.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def _is_mapped(file: Path) -> bool:
    """Whether a file can be mapped into memory: of torch's own only the zip form, its since 1.6."""
    return file.suffix != ".bin" or zipfile.is_zipfile(file)


def _unpickle(file: Path) -> dict[str, torch.Tensor]:
    """Open a pickled state dict with torch's restricted reader, which builds tensors and runs nothing else."""
    import torch

    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=_is_mapped(file))
    except Exception as error:  # A pickle that was made to do harm, or is cut off, fails in any way at all.
        reason = str(error).strip().split("\n", 1)[0]
        raise CheckpointError(f"{file} is not a whole file of weights and nothing but weights ({reason})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds no table of tensors but {type(content).__name__}")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            raise CheckpointError(f"{file}: {str(name)[:200]!r} is not a plain tensor")
    return dict(content)


def _cosine_table(positions: int, width: int) -> torch.Tensor:
    """Compute the sines and cosines (positions, width) that most files store."""
    import torch

    steps = torch.exp(torch.arange(width // 2).float() * -(math.log(10000) / (width // 2)))
    angles = torch.arange(positions).float().unsqueeze(1) * steps
    return torch.stack([angles.sin(), angles.cos()], dim=-1).reshape(positions, width)
