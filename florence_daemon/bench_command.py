"""The bench command: choose pictures, try settings on them with the engine process, say which to choose."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from florence_daemon.bench import KINDS, Bench, Facts, OpenEngine, Plan, Row, choose, join, make_trials, sum_up
from florence_daemon.bench_report import BenchReport, report_lines
from florence_daemon.config import Config, FolderConfig
from florence_daemon.engine.handle import resident_bytes
from florence_daemon.engine.process import Engine
from florence_daemon.engine.protocol import Ask, Done, EngineSettings
from florence_daemon.engines import engine_limits, engine_settings
from florence_daemon.errors import UsageError
from florence_daemon.folders.names import is_image_name
from florence_daemon.folders.scan import find_images
from florence_daemon.logs import printable
from florence_daemon.quantize import spread
from florence_daemon.reporting import Progress, open_progress
from florence_daemon.tasks import find_task

# What is written beside each picture unless something else is configured.
DEFAULT_PROMPTS = ("MORE_DETAILED_CAPTION", "GENERATE_TAGS")
QUICK_KINDS = ("engine", "precision", "num_beams")


@dataclass(frozen=True)
class Wish:
    """What the command line asks for. kinds: the settings to change; empty takes all, or with `quick` some."""

    paths: tuple[Path, ...]
    pictures: int | None
    rounds: int | None
    prompts: tuple[str, ...]
    kinds: tuple[str, ...]
    quick: bool


def run_bench(wish: Wish, config: Config, *, as_json: bool) -> int:
    """Measure, print the report, return the exit code.

    Raises: UsageError, FlorenceError when the settings as they are do not work.
    """
    asks = tuple(_ask(prompt) for prompt in wish.prompts or DEFAULT_PROMPTS)
    count = wish.pictures or (4 if wish.quick else 12)
    plan = Plan(rounds=wish.rounds or (1 if wish.quick else 3), alone=2 if wish.quick else 4)
    pictures = spread(_find(wish.paths or tuple(folder.path for folder in config.folders)), count)
    present = engine_settings(config)
    facts = find_facts(present)
    trials = make_trials(present, facts, wish.kinds or (QUICK_KINDS if wish.quick else KINDS))
    bench = Bench(pictures, asks, plan, _open_engine(config), ToStderr())
    rows = bench.run(trials)
    report = _report(bench, rows, asks, facts, plan)
    print(json.dumps(report.as_json()) if as_json else "\n".join(report_lines(report)))
    return 0


def _report(bench: Bench, rows: list[Row], asks: Sequence[Ask], facts: Facts, plan: Plan) -> BenchReport:
    tried = sum_up(rows, asks)
    chosen = choose(tried)
    present = rows[0].trial.settings
    final = chosen[0] if len(chosen) == 1 else tried[0]
    if len(chosen) > 1:
        final = sum_up(bench.run([rows[0].trial, join(present, chosen)]), asks)[-1]
    return BenchReport(
        model=present.model,
        runs_on=f"{facts.engine} {facts.precision} at {facts.side_px} pixels on {facts.device}",
        prompts=tuple(ask.prompt for ask in asks),
        pictures=len(rows[0].answers),
        rounds=plan.rounds,
        tried=tuple(tried),
        unable=tuple((row.trial.title, row.unable) for row in rows if row.unable is not None),
        final=final,
        int8_hint=facts.device == "cpu" and facts.precision != "int8" and not facts.int8_proved,
    )


def find_facts(settings: EngineSettings) -> Facts:
    """Find what settings come to on this machine. Raises: EngineError, CheckpointError."""
    from florence_daemon.engine.backend import choose_device, choose_engine, choose_precision
    from florence_daemon.engine.checkpoint import find, open_checkpoint
    from florence_daemon.engine.proof import is_proved

    device = choose_device("cpu" if settings.engine == "openvino" and settings.device == "auto" else settings.device)
    engine = choose_engine(settings.engine, settings.precision, device)
    checkpoint = open_checkpoint(find(settings.model, settings.revision, settings.offline), settings.image_size)
    return Facts(
        device=device,
        engine=engine,
        precision=choose_precision(checkpoint, settings, device, engine),
        side_px=checkpoint.layout.image_side_px,
        has_openvino=find_spec("openvino") is not None,
        int8_proved=is_proved(checkpoint, settings),
    )


class _EngineHere:
    """An engine process, for as long as a trial lasts."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def submit(self, picture: str | bytes, asks: tuple[Ask, ...]) -> Future[Done]:
        """Send a request."""
        return self._engine.submit(picture, asks)

    def resident_mb(self) -> float | None:
        """Its process' main memory."""
        pid = self._engine.state().pid
        resident = resident_bytes(pid) if pid else None
        return resident / 2**20 if resident else None


def _open_engine(config: Config) -> OpenEngine:
    limits = engine_limits(config)

    @contextmanager
    def open_one(settings: EngineSettings) -> Iterator[_EngineHere]:
        engine = Engine(settings, idle_unload_s=-1, limits=limits)
        try:
            yield _EngineHere(engine)
        finally:
            engine.close(at_once=True)

    return open_one


def _find(paths: Sequence[Path]) -> list[str]:
    """The pictures at and below these paths. Raises: UsageError when there are none."""
    if not paths:
        raise UsageError("no folder is configured: give pictures, or a folder with some, such as those you caption")
    found: list[str] = []
    for path in paths:
        if path.is_dir():
            found += find_images(FolderConfig(path=path), on_error=_say_unreadable)
        elif path.is_file() and is_image_name(path.name):
            found.append(os.fspath(path))
        else:
            raise UsageError(f"{path} is no picture and no folder")
    if not found:
        raise UsageError(f"there are no pictures in {', '.join(map(str, paths))}")
    return list(dict.fromkeys(found))


def _ask(prompt: str) -> Ask:
    task, text = find_task(prompt)
    return Ask(task.token, text)


class ToStderr:
    """Tells a person how it goes on."""

    def begin(self, what: str, total: int) -> Progress:
        """Name the part, and show how far it is."""
        _say(what)
        return open_progress(total)

    def skip(self, reason: str) -> None:
        """Name what is left out."""
        _say(f"left out: {reason}")


def _say_unreadable(error: OSError) -> None:
    _say(f"{printable(str(error.filename))}: cannot be looked into: {error.strerror}")


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr, flush=True)
