"""The quantize command: choose pictures, try the other form, print how far it agrees and what follows."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from florence_daemon.config import Config, ModelConfig
from florence_daemon.config_output import DEFAULT_OUTPUTS
from florence_daemon.engine.agreement import Agreement, summarize
from florence_daemon.engine.proof import Form, Report
from florence_daemon.engine.protocol import Ask, EngineSettings
from florence_daemon.engines import engine_settings
from florence_daemon.errors import EngineError, PictureError, UsageError
from florence_daemon.logs import printable
from florence_daemon.quantize import INT8, AnswerFile, Answers, Engines, Listener, Trial, choose_pictures, try_out
from florence_daemon.reporting import Progress, open_progress
from florence_daemon.tasks import find_task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from florence_daemon.engine.checkpoint import Checkpoint

EXIT_REFUSED = 1
DEFAULT_PROMPTS = (*(name for output in DEFAULT_OUTPUTS for name in output.prompt_names), "OD")


@dataclass(frozen=True)
class Wish:
    """What the command line asks for. image_size, compare_size: None takes what the configuration says."""

    folder: Path
    pictures: int
    prompts: tuple[str, ...]
    precision: str = INT8
    image_size: int | None = None
    compare_size: int | None = None


def run_quantize(wish: Wish, config: Config, *, as_json: bool, engines: Engines | None = None) -> int:
    """Measure on the person's own pictures, print the report and the verdict; return the exit code."""
    prompts = tuple(_ask(prompt) for prompt in wish.prompts or DEFAULT_PROMPTS)
    engines = engines or EnginesHere()
    usual, other = _settings(wish, config)
    _check_forms(usual, other, engines)
    calibration, measuring = choose_pictures(
        wish.folder, wish.pictures, halve=wish.precision == INT8, on_unreadable=_say_unreadable
    )
    report = try_out(Trial(usual, other, prompts, calibration, measuring), engines, ToStderr())
    if as_json:
        print(json.dumps(report.as_json()))
    else:
        print("\n".join([*report_lines(report), "", *verdict_lines(report, wish, config.model)]))
    return EXIT_REFUSED if report.objections else 0


def _settings(wish: Wish, config: Config) -> tuple[EngineSettings, EngineSettings]:
    """The usual form, float32 as configured otherwise, and the other one."""
    configured = replace(engine_settings(config), precision="float32")
    if wish.precision == INT8:
        configured = replace(configured, device="cpu")  # the only one that int8 is for
    usual = replace(configured, image_size=wish.compare_size or configured.image_size)
    other = replace(configured, precision=wish.precision, image_size=wish.image_size or configured.image_size)
    return usual, replace(other, engine="openvino") if wish.precision == INT8 else other


def _check_forms(usual: EngineSettings, other: EngineSettings, engines: Engines) -> None:
    """Raises: UsageError, EngineError."""
    if other.precision == INT8 and not (find_spec("openvino") and find_spec("nncf")):
        raise EngineError("int8 needs OpenVINO and NNCF, which are not here: pip install 'florence-daemon[quantize]'")
    usual_px, other_px = engines.image_size(usual), engines.image_size(other)
    if other_px > usual_px:
        raise UsageError(f"{other_px} pixels would be compared with {usual_px}, and only a smaller picture is faster")
    if other.precision != INT8 and other_px == usual_px:
        raise UsageError(f"float32 at {usual_px} pixels is the usual form itself: give a smaller --image-size, or int8")


def _ask(prompt: str) -> Ask:
    task, text = find_task(prompt)
    return Ask(task.token, text)


class EnginesHere:
    """The real engine, in this process: the command ends with it."""

    def image_size(self, settings: EngineSettings) -> int:
        """Side of the picture; see `Engines.image_size`."""
        return _checkpoint(settings).layout.image_side_px

    def int8_directory(self, settings: EngineSettings) -> Path:
        """Where the int8 form belongs; see `Engines.int8_directory`."""
        from florence_daemon.engine.openvino_form import int8_directory

        return int8_directory(Path(str(settings.state_dir)), _checkpoint(settings))

    @contextmanager
    def open(self, settings: EngineSettings) -> Iterator[AnswerFile]:
        """Load the model; see `Engines.open`."""
        from florence_daemon.engine.backend import open_backend
        from florence_daemon.engine.preprocess import read_picture

        backend, side_px = open_backend(settings), self.image_size(settings)

        def answer(path: str, asks: Sequence[Ask]) -> Answers:
            began_s = perf_counter()
            picture = read_picture(path, side_px, settings.fast_decode)
            decode_s = perf_counter() - began_s
            answers, stages = backend.answer(picture, asks)
            return answers, replace(stages, decode_s=decode_s)

        yield answer

    def calibrate(self, settings: EngineSettings, pictures: Sequence[str], listener: Listener) -> None:
        """Make the int8 form; see `Engines.calibrate`."""
        pixels = list(_read_pixels(pictures, self.image_size(settings), listener))
        if not pixels:
            raise EngineError(f"none of the {len(pictures)} pictures to calibrate with can be read")
        with redirect_stdout(sys.stderr):  # NNCF shows bars of its own; results alone go to standard output
            from florence_daemon.engine.openvino_export import calibrate

            calibrate(_checkpoint(settings), pixels, self.int8_directory(settings), listener.step)


def _checkpoint(settings: EngineSettings) -> Checkpoint:
    from florence_daemon.engine.checkpoint import find, open_checkpoint

    return open_checkpoint(find(settings.model, settings.revision, settings.offline), settings.image_size)


def _read_pixels(pictures: Sequence[str], side_px: int, listener: Listener) -> Iterator[NDArray[np.float32]]:
    from florence_daemon.engine.preprocess import read_picture, to_pixels

    progress = listener.begin("reading pictures to calibrate with", len(pictures))
    try:
        for path in pictures:
            try:
                picture = read_picture(path, side_px)
            except PictureError as error:
                listener.skip(str(error))
                progress.advance(failed=True)
            else:
                yield to_pixels(picture, side_px)
                progress.advance(failed=False)
    finally:
        progress.close()


class ToStderr:
    """Tells a person how it goes on."""

    def begin(self, what: str, total: int) -> Progress:
        """Name the part, and show how far it is."""
        self.step(what)
        return open_progress(total)

    def step(self, what: str) -> None:
        """Name the part."""
        _say(what)

    def skip(self, reason: str) -> None:
        """Name the picture; the reason begins with its path."""
        _say(f"left out: {reason}")


# What is printed


def report_lines(report: Report) -> list[str]:
    """The figures as a table, the speed, and the texts that differ most."""
    compared = report.agreements[0].answers
    lines = [f"{report.model}: {report.other} beside {report.usual}, {compared} pictures", "", *_table(report)]
    lines += ["", _speed(report.usual, report.other, len(report.agreements))]
    if report.differences:
        lines += ["", "The texts that differ most:"]
    for each in report.differences:
        lines += ["", f"{each.prompt} {printable(each.image)}"]
        lines += [f"  {form}: {text}" for form, text in ((report.usual, each.usual), (report.other, each.other))]
    return lines


def _table(report: Report) -> list[str]:
    rows: list[tuple[str, ...]] = [("prompt", "same text", "edit similarity", "worst", "tag overlap", "box IoU")]
    rows += [_row(each.prompt, each) for each in report.agreements]
    if len(report.agreements) > 1:
        rows.append(_row("all", summarize(report.agreements)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) if number else cell.ljust(width) for number, (cell, width) in enumerate(cells))
        for cells in (tuple(zip(row, widths, strict=True)) for row in rows)
    ]


def _row(title: str, agreement: Agreement) -> tuple[str, ...]:
    figures = (
        agreement.edit_similarity,
        agreement.worst_edit_similarity,
        agreement.tag_overlap,
        agreement.box_iou,
    )
    return (title, f"{100 * agreement.same:.1f} %", *("" if figure is None else f"{figure:.3f}" for figure in figures))


def _speed(usual: Form, other: Form, prompts: int) -> str:
    seeing, writing = _ratio(usual.vision_s, other.vision_s), _ratio(usual.text_s, other.text_s)
    return (
        f"{_ratio(usual.picture_s, other.picture_s)} as fast: {other.picture_s:.2f} s, not {usual.picture_s:.2f} s, "
        f"for a picture and its {prompts} prompts (seeing {seeing}, writing {writing})"
    )


def _ratio(usual_s: float, other_s: float) -> str:
    return f"{usual_s / other_s:.2f} ×" if other_s else "–"


def verdict_lines(report: Report, wish: Wish, model: ModelConfig) -> list[str]:
    """What follows from the report, and what to set in the configuration."""
    is_good = not report.objections
    settings = ", ".join(f"model.{setting}" for setting in _settings_to_make(wish, model, is_good))
    to_take = f"To take {report.other}{'' if is_good else ' all the same'}, set {settings}." if settings else ""
    if is_good and wish.precision == INT8:
        return [f"Proved: precision auto takes {report.other} from now on.", *filter(None, [to_take])]
    if is_good:
        return ["Good enough.", *filter(None, [to_take])]
    stays = ["Precision auto stays with float32."] if wish.precision == INT8 else []
    return ["Refused:", *(f"  {reason}" for reason in report.objections), *stays, *filter(None, [to_take])]


def _settings_to_make(wish: Wish, model: ModelConfig, is_good: bool) -> list[str]:
    """The settings that lead to the other form and are not made yet; auto takes int8 only where it is proved."""
    wanted = []
    if wish.image_size not in (None, model.image_size):
        wanted.append(f"image_size: {wish.image_size}")
    if wish.precision != INT8:
        return wanted
    if model.precision not in (("auto", INT8) if is_good else (INT8,)):
        wanted.append(f"precision: {'auto' if is_good else INT8}")
    if model.engine not in ("auto", "openvino"):
        wanted.append("engine: auto")
    if model.device not in ("auto", "cpu"):
        wanted.append("device: cpu")
    return wanted


def _say_unreadable(error: OSError) -> None:
    _say(f"{error.filename}: cannot be looked into: {error.strerror}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
