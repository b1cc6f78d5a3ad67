"""The commands that ask a running daemon, or have it do something."""

from __future__ import annotations

import json
import os
from typing import Annotated, Any

import typer

from florence_daemon.command_line import (
    DEFAULT_SERVER,
    JsonOption,
    ServerOption,
)


def model(server: ServerOption = DEFAULT_SERVER) -> None:
    """Print which model a daemon answers with."""
    print(_client(server).model())


def prompts(server: ServerOption = DEFAULT_SERVER) -> None:
    """Print the prompts a daemon knows."""
    print("\n".join(_client(server).prompts()))


def status(server: ServerOption = DEFAULT_SERVER, as_json: JsonOption = False) -> None:
    """Print what a daemon is doing: model, queue, folders, and every image that failed with its reason."""
    from florence_daemon.status_text import print_lines, status_lines

    now = _client(server).status()
    if as_json:
        print(json.dumps(now))
    else:
        print_lines(status_lines(now))


def ps(server: ServerOption = DEFAULT_SERVER, as_json: JsonOption = False) -> None:
    """Print which model a daemon has loaded, where, how large it is, and when it goes."""
    from florence_daemon.status_text import print_lines, ps_lines

    now = _client(server).status()
    if as_json:
        print(json.dumps(now["model"]))
    else:
        print_lines(ps_lines(now))


def retry(
    path: Annotated[
        str | None, typer.Argument(metavar="[PATH]", help="An image or a folder; all without it.", show_default=False)
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Have a daemon try failed images again: all, or those at or below a path."""
    _act(server, "retry", path, "{retried} images are tried again", as_json=as_json)


def rescan(
    path: Annotated[
        str | None, typer.Argument(metavar="[PATH]", help="A watched folder, or what is in it.", show_default=False)
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Have a daemon look at its watched folders now: all, or the one that a path is in."""
    _act(server, "rescan", path, "{rescanned} folders are scanned", as_json=as_json)


def forget(
    path: Annotated[str, typer.Argument(metavar="PATH", help="An image, or a folder of images.")],
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Have a daemon drop what it has noted about images; sidecars beside them then count as yours."""
    _act(server, "forget", path, "{forgotten} images are forgotten", as_json=as_json)


def _act(server: str, action: str, path: str | None, text: str, *, as_json: bool) -> None:
    """Have a daemon do something, and print how much there was to do. path: relative ones start here."""
    if path is not None and not path.startswith("/"):  # on Windows, too: it can be a path of the server
        path = os.path.abspath(path)
    counts = _client(server).act(action, path)
    print(json.dumps(counts) if as_json else text.format(**counts))


def _client(server: str) -> Any:
    from florence_daemon.client import open_client

    return open_client(server)
