"""The caption command: ask about each picture in turn and print what comes back."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from florence_daemon.config import Config
from florence_daemon.engine.pool import Pool
from florence_daemon.engine.process import Engine
from florence_daemon.engine.protocol import Ask
from florence_daemon.engines import engine_limits, engine_settings, open_pool
from florence_daemon.errors import CheckpointError, FlorenceError, ServerError
from florence_daemon.logs import printable

EXIT_SOME_FAILED = 1
Result = str | dict[str, Any]


@contextmanager
def ask_server(server: str, config: Config) -> Iterator[Callable[[str, Ask], Result]]:
    """Answer through a running daemon."""
    from florence_daemon.client import open_client

    client = open_client(server, config.server, lambda reason: print(reason, file=sys.stderr, flush=True))
    try:
        yield lambda image, ask: client.ask(image, [ask])[0].result
    finally:
        client.close()


@contextmanager
def ask_engine(config: Config) -> Iterator[Callable[[str, Ask], Result]]:
    """Answer with an engine of this process, which ends with it."""
    engine: Engine | Pool
    if config.model.server:
        engine = open_pool(config)
    else:
        engine = Engine(engine_settings(config), idle_unload_s=-1, limits=engine_limits(config))
    try:
        yield lambda image, ask: engine.submit(image, (ask,)).result().answers[0].result
    finally:
        engine.close(at_once=True)


def print_answers(
    images: Sequence[str],
    ask: Ask,
    answer: Callable[[str, Ask], Result],
    *,
    as_json: bool,
    drawings: Mapping[str, str] | None = None,
) -> int:
    """Print one answer per picture, in order; return the exit code.

    drawings: the file that each picture is drawn into with what was found.
    Raises: what makes every picture fail.
    """
    failed = False
    for image in images:
        try:
            result = answer(image, ask)
            drawing = _draw(image, result, drawings)
        except (CheckpointError, ServerError):
            raise
        except FlorenceError as error:
            failed = True
            _print_error(image, ask, str(error), as_json=as_json)
        else:
            _print_result(image, ask, result, drawing, as_json=as_json, alone=len(images) == 1)
    return EXIT_SOME_FAILED if failed else 0


def _draw(image: str, result: Result, drawings: Mapping[str, str] | None) -> str | None:
    if drawings is None or isinstance(result, str):
        return None
    from florence_daemon.drawing_files import draw_file

    draw_file(image, result, drawings[image])
    return drawings[image]


def _print_result(image: str, ask: Ask, result: Result, drawing: str | None, *, as_json: bool, alone: bool) -> None:
    if as_json:
        said = {"image": image, "task": ask.prompt, "result": result}
        print(json.dumps(said if drawing is None else said | {"drawing": drawing}), flush=True)
        return
    text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
    print(text if alone else f"{printable(image)}: {text}", flush=True)


def _print_error(image: str, ask: Ask, error: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"image": image, "task": ask.prompt, "error": error}), flush=True)
        return
    print(f"{printable(image)}: {error.removeprefix(image).lstrip(': ')}", file=sys.stderr, flush=True)
