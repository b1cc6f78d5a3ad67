"""What `run` says first to a person at a terminal: in a log, the lines of the log do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from rich.text import Text

from florence_daemon import __version__
from florence_daemon.config import Config, ModelConfig
from florence_daemon.config_checks import is_loopback
from florence_daemon.config_file import state_directory
from florence_daemon.logs import printable
from florence_daemon.status_text import labelled, print_lines, say_time


def greet(config: Config, address: str, file: Path | None) -> None:
    """Print the banner to standard error. file: the configuration that was read, None where there is none."""
    print_lines(banner_lines(config, address, file), to_stderr=True)


def banner_lines(config: Config, address: str, file: Path | None) -> list[Text]:
    """Version, model, address, folders with what is written, where things are. address: `http://127.0.0.1:54880`."""
    server = config.server
    who = "this machine alone" if is_loopback(server.host) else "the network"
    token = "with the token" if server.required_token else "no token asked for"
    ledger = state_directory(config.state, os.environ) / "ledger.sqlite3"
    folders = [Text(line) for line in _folders(config)]
    return [
        Text.assemble(("Florence Daemon", "bold"), f" {__version__}; Ctrl-C ends it"),
        *labelled("model", [_say_model(config.model)]),
        *labelled("address", [Text.assemble((address, "bold"), f" for programs, and the page; {who}, {token}")]),
        *labelled("folders", folders or [Text("none; name some in the configuration, or with --watch DIR")]),
        *labelled("config", [Text(f"{printable(str(file))}, read again when it changes" if file else "no file")]),
        *labelled("ledger", [Text(printable(str(ledger)))]),
        Text(""),
    ]


def _say_model(model: ModelConfig) -> Text:
    if model.server:
        return Text.assemble("that of ", (", ".join(model.server), "bold"))
    return Text.assemble((model.name, "bold"), ", ", _say_loading(model.idle_unload_s))


def _say_loading(idle_unload_s: float) -> str:
    if idle_unload_s < 0:
        return "loads with the first picture and stays"
    if idle_unload_s == 0:
        return "is there while there is work"
    return f"loads with the first picture, goes after {say_time(idle_unload_s)} without work"


def _folders(config: Config) -> Iterator[str]:
    """`/srv/inbox: MORE_DETAILED_CAPTION to .txt, GENERATE_TAGS to .tag`"""
    for folder in config.folders:
        writes = ", ".join(f"{' and '.join(output.prompt_names)} to {output.ending}" for output in folder.outputs)
        missing = "" if folder.path.is_dir() else " (not there yet)"
        yield f"{printable(str(folder.path))}: {writes}{missing}"
