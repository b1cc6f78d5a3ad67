"""The report of `florence-daemon quantize`: kept beside the int8 form that it is about, and read as proof of it."""

from __future__ import annotations

import json
import logging
import os
import platform
import re
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from florence_daemon.engine.agreement import Agreement, objections, summarize

if TYPE_CHECKING:
    from florence_daemon.engine.checkpoint import Checkpoint
    from florence_daemon.engine.protocol import EngineSettings

log = logging.getLogger(__name__)

FILE_NAME = "agreement.json"
# Raised when the figures mean something else than before, so that what was measured otherwise is no proof.
FORMAT = 1
# A form that says the same from less memory may take as long; on a busy machine, seconds waver by this much.
MAX_SLOWDOWN = 1.25


@dataclass(frozen=True)
class Form:
    """One way to run a checkpoint, and what it took: medians of the seconds for one picture and all of the prompts.

    picture_s: from the file to the answers; vision_s, text_s: the two parts of it that the model has.
    """

    precision: str
    image_size: int
    picture_s: float
    vision_s: float
    text_s: float

    def __str__(self) -> str:
        return f"{self.precision} at {self.image_size} pixels"


@dataclass(frozen=True)
class Difference:
    """Two texts about one picture that are not the same."""

    image: str
    prompt: str
    usual: str
    other: str


@dataclass(frozen=True)
class Report:
    """How another form of a checkpoint answered beside the usual one."""

    model: str
    usual: Form
    other: Form
    agreements: tuple[Agreement, ...]
    differences: tuple[Difference, ...]

    @property
    def objections(self) -> list[str]:
        """What speaks against the other form; nothing where it is as good."""
        return objections(self.agreements) + _objections_to_speed(self.usual, self.other)

    def as_json(self) -> dict[str, Any]:
        """The report, with what follows from it, as it is printed and kept."""
        return {
            "is_good": not self.objections,
            "objections": self.objections,
            **asdict(self),
            "all": asdict(summarize(self.agreements)),
        }


def write_report(report: Report, directory: Path) -> Path:
    """Keep a report beside the form that it is about, whole or not at all; return its path."""
    path = directory / FILE_NAME
    unfinished = path.with_suffix(".unfinished")
    text = json.dumps(report.as_json() | {"circumstances": _circumstances(directory)}, indent=2)
    unfinished.write_text(text + "\n", encoding="utf-8")
    os.replace(unfinished, path)
    return path


def forget_report(directory: Path) -> None:
    """Take the report away before its form becomes another one."""
    (directory / FILE_NAME).unlink(missing_ok=True)


def is_proved(checkpoint: Checkpoint, settings: EngineSettings) -> bool:
    """Tell whether this very checkpoint's int8 form, at this picture size, has been shown to answer as float32 does."""
    if settings.state_dir is None:
        return False
    from florence_daemon.engine.openvino_form import int8_directory

    directory = int8_directory(Path(settings.state_dir), checkpoint)
    return is_proof(directory, checkpoint.layout.image_side_px)


def is_proof(directory: Path, image_size: int) -> bool:
    """Tell whether a good report about the int8 form in `directory` lies there, and was measured as things are now.

    Its figures are judged anew, by today's thresholds.
    """
    path = directory / FILE_NAME
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        form = (kept["other"]["precision"], kept["other"]["image_size"])
        agreements = [Agreement(**each) for each in kept["agreements"]]
        if (kept["circumstances"], *form) != (_circumstances(directory), "int8", image_size):
            log.warning("%s was measured otherwise than int8 would run now; repeat florence-daemon quantize", path)
            return False
        return not objections(agreements) + _objections_to_speed(Form(**kept["usual"]), Form(**kept["other"]))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.warning("%s cannot be read, so int8 is not proved: %r; repeat florence-daemon quantize", path, error)
        return False


def _objections_to_speed(usual: Form, other: Form) -> list[str]:
    if other.picture_s <= MAX_SLOWDOWN * usual.picture_s:
        return []
    return [f"it is slower here: {other.picture_s:.2f} s a picture, not {usual.picture_s:.2f} s"]


def _circumstances(directory: Path) -> dict[str, Any]:
    """What must be the same for a report to hold.

    form: the directory's name, which says the checkpoint and the picture's size. openvino, processor: they choose how
    int8 products are computed, and what is rounded on the way.
    """
    return {
        "format": FORMAT,
        "form": directory.name,
        "openvino": _version("openvino"),
        "processor": _processor(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    found = re.search(r"^(?:model name|CPU part|cpu model)\s*:\s*(.+)$", told, re.MULTILINE)
    return found[1] if found else platform.processor()
