"""Where the form of a checkpoint that OpenVINO runs is kept, and what is in it; reads and writes no model itself."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from florence_daemon.engine.checkpoint import Checkpoint
from florence_daemon.engine.files import find_weights

# Goes up when what is exported changes: forms of another version are made anew.
VERSION = 1
# The three networks of a form, each compiled on its own: pixels to features, features and prompt to memory, one step.
PARTS = ("see", "read", "write")
EMBEDDING = "embedding.npy"
_CARD = "form.json"


@dataclass(frozen=True)
class Form:
    """A checkpoint as OpenVINO runs it: a directory with, for each of PARTS, `see.xml` and its weights or `see.blob`.

    The `.blob` is what was compiled on this machine, loaded in a second; the `.xml` is kept where it cannot be made
    again from the checkpoint alone. text: the sizes that `Decoder` needs.
    """

    directory: Path
    layers: int
    heads: int
    head_width: int
    image_tokens: int
    max_positions: int

    def xml(self, part: str) -> Path:
        """The network as it was exported."""
        return self.directory / f"{part}.xml"

    def blob(self, part: str) -> Path:
        """The network as it was compiled."""
        return self.directory / f"{part}.blob"


def checkpoint_key(checkpoint: Checkpoint) -> str:
    """Name a checkpoint by its weight files (where they are, their size and time) and the side of its pictures."""
    seen = hashlib.sha256()
    for file in sorted(find_weights(checkpoint.directory)):
        status = file.resolve().stat()
        seen.update(f"{file.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return f"{seen.hexdigest()[:16]}-{checkpoint.layout.image_side_px}"


def float32_directory(state_dir: Path, checkpoint: Checkpoint) -> Path:
    """Where the float32 form belongs: only compiled networks, so another for each release of OpenVINO."""
    return state_dir / "openvino" / f"{checkpoint_key(checkpoint)}-float32-{metadata.version('openvino')}-v{VERSION}"


def int8_directory(state_dir: Path, checkpoint: Checkpoint) -> Path:
    """Where the int8 form belongs, which `florence-daemon quantize` makes."""
    return state_dir / "openvino" / f"{checkpoint_key(checkpoint)}-int8-v{VERSION}"


def begin_form(directory: Path, checkpoint: Checkpoint) -> Form:
    """Make an empty directory for a form; what was there is removed."""
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    text = checkpoint.layout.text
    heads = text["decoder_attention_heads"]
    return Form(
        directory,
        layers=text["decoder_layers"],
        heads=heads,
        head_width=text["d_model"] // heads,
        image_tokens=checkpoint.layout.image_tokens,
        max_positions=checkpoint.layout.max_positions,
    )


def finish_form(form: Form, notes: dict[str, Any]) -> None:
    """Note that the form is whole. notes: what was measured while it was made."""
    sizes = {key: value for key, value in asdict(form).items() if key != "directory"}
    text = json.dumps({"sizes": sizes, "notes": notes, "openvino": metadata.version("openvino")}, indent=1)
    (form.directory / _CARD).write_text(text, encoding="utf-8")


def find_form(directory: Path) -> Form | None:
    """Read a form that is whole; None where there is none."""
    try:
        card = json.loads((directory / _CARD).read_text(encoding="utf-8"))
        return Form(directory, **card["sizes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
