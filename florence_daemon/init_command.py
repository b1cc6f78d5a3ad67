"""The init command: a first configuration, from options or from a person's answers, with a comment to each setting."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import attrs

from florence_daemon import config_file
from florence_daemon.config import OPEN, ModelConfig, ServerConfig
from florence_daemon.config_checks import BadSetting, is_loopback
from florence_daemon.config_output import DEFAULT_OUTPUTS, OutputConfig
from florence_daemon.errors import UsageError
from florence_daemon.folders.atomic import Directory

T = TypeVar("T")

# What a trainer reads: one line with a caption and tags.
TRAINING = OutputConfig(
    prompts=("DETAILED_CAPTION", "GENERATE_TAGS"), ext="txt", template="{prefix}{caption} {tags}", underscores="spaces"
)
# Where who reads the file finds more.
EVERY_SETTING = "config/florence-daemon.yaml beside the program, and docs/configuration.md"


@dataclass(frozen=True)
class Wish:
    """What the configuration is to hold."""

    model: str = ModelConfig().name
    idle_unload_s: float = ModelConfig().idle_unload_s
    host: str = ServerConfig().host
    port: int = ServerConfig().port
    folders: tuple[Path, ...] = ()
    outputs: tuple[OutputConfig, ...] = DEFAULT_OUTPUTS
    overwrite: str = "never"


def write_configuration(file: Path, wish: Wish, *, force: bool) -> None:
    """Write it, where nothing is yet unless `force`. Raises: ConfigError, UsageError."""
    text = compose(wish)
    config_file.load_text(text, file, {})
    file.parent.mkdir(parents=True, exist_ok=True)
    if not is_loopback(wish.host):
        os.umask(0o077)  # a token is in it
    try:
        with Directory(os.fspath(file.parent)) as directory:
            if not directory.write(file.name, text.encode(), lambda: force):
                raise taken(file)
    except OSError as error:
        raise UsageError(f"{file}: cannot be written: {error.strerror}") from None


def taken(file: Path) -> UsageError:
    """The error for a configuration that is there already."""
    return UsageError(f"{file}: is there already and stays as it is; --force replaces it, or name another FILE")


def ask(wish: Wish, read: Callable[[str], str] = input) -> Wish:
    """Ask a person for what matters; an empty answer takes what is shown in brackets."""
    say("A first configuration. Return takes what is in brackets; everything can be changed in the file later.\n")
    model = _ask(
        read, "Model: a Hub id, a local directory, or demo", wish.model, lambda each: ModelConfig(name=each).name
    )
    folders = _ask(read, "Folder to watch (several with ; between, empty for none)", _joined(wish.folders), _folders)
    wish = replace(wish, model=model, folders=folders)
    if folders:
        wish = _ask_outputs(read, wish)
    seconds = _ask(
        read,
        "Unload the model after how many seconds without work (0 at once, -1 never)",
        f"{wish.idle_unload_s:g}",
        lambda each: ModelConfig(idle_unload_s=float(each)).idle_unload_s,
    )
    host = _ask(
        read, "Who may ask over HTTP: 127.0.0.1 this machine, 0.0.0.0 the network with a token", wish.host, _host
    )
    return replace(wish, idle_unload_s=seconds, host=host)


def _ask_outputs(read: Callable[[str], str], wish: Wish) -> Wish:
    kind = _ask(
        read, "What for: captions (.txt and .tag), or training (both in one line of .txt)", "captions", _purpose
    )
    if kind == "captions":
        return wish
    trigger = _ask(read, "A trigger word before each text (empty for none)", "", str.strip)
    return replace(wish, outputs=(attrs.evolve(TRAINING, prefix=f"{trigger}, " if trigger else ""),))


def _purpose(answer: str) -> str:
    if answer not in ("captions", "training"):
        raise ValueError("give captions or training")
    return answer


def _host(answer: str) -> str:
    return ServerConfig(host=answer, token=OPEN).host


def _folders(answer: str) -> tuple[Path, ...]:
    return tuple(Path(each.strip()) for each in answer.split(";") if each.strip())


def _joined(folders: Sequence[Path]) -> str:
    return "; ".join(map(str, folders))


def _ask(read: Callable[[str], str], question: str, default: str, check: Callable[[str], T]) -> T:
    """Ask until the answer is right."""
    while True:
        try:
            return check(read(f"{question} [{default}]: ").strip() or default)
        except (BadSetting, ValueError) as error:
            say(f"  {error}")


def compose(wish: Wish) -> str:
    """The configuration's text."""
    return "\n".join([_head(), _model(wish), _server(wish), _folder_list(wish)])


def _head() -> str:
    return f"""\
# Made by `florence-daemon init`. Every setting is in {EVERY_SETTING}.
# A running daemon takes changes of this file up by itself; `florence-daemon check-config FILE` reads it over first.
"""


def _model(wish: Wish) -> str:
    return f"""\
# Which model answers, and how long it stays.
model:
  # A Hub id, a local directory, or demo (the small model that comes with the program).
  name: {_text(wish.model)}
  # Seconds without work after which the model is unloaded and its memory given back; 0 at once, -1 never.
  idle_unload_s: {wish.idle_unload_s:g}
"""


def _server(wish: Wish) -> str:
    token = ""
    if not is_loopback(wish.host):
        token = f"""\
  # What every request must bring, as `Authorization: Bearer TOKEN`; commands take it from FLORENCE_DAEMON_TOKEN.
  token: {secrets.token_hex(32)}
"""
    return f"""\
# Where the HTTP API listens.
server:
  # 127.0.0.1 serves this machine alone; 0.0.0.0 serves the network, and needs a token.
  host: {_text(wish.host)}
  port: {wish.port}
{token}"""


def _folder_list(wish: Wish) -> str:
    if not wish.folders:
        return """\
# The folders whose pictures are captioned as they come: a path for each, and what is written beside each picture.
# folders:
#   - path: ~/Pictures/to-caption
folders: []
"""
    said = "# The folders whose pictures are captioned as they come.\nfolders:\n"
    return said + "".join(_folder(path, wish) for path in wish.folders)


def _folder(path: Path, wish: Wish) -> str:
    outputs = "".join(f"      - {_output(output)}\n" for output in wish.outputs)
    return f"""\
  - path: {_text(os.path.abspath(path.expanduser()))}
    # What is written beside each picture: a.jpg's answer to the prompt goes into a.EXT. A file .florence.yaml in any
    # folder below may say otherwise for the pictures there.
    outputs:
{outputs}\
    # Files that exist: never touches them; stale makes those anew that the program wrote and nobody changed, once the
    # model or the settings have changed; always also others'.
    overwrite: {wish.overwrite}
"""


def _output(output: OutputConfig) -> str:
    """What an output says beyond the defaults."""
    given = {
        each.name: value for each in attrs.fields(OutputConfig) if (value := getattr(output, each.name)) != each.default
    }
    if len(output.prompts) == 1:
        given = {"prompt": output.prompts[0]} | given
        del given["prompts"]
    return "{" + ", ".join(f"{name}: {_text(value)}" for name, value in given.items()) + "}"


def _text(value: object) -> str:
    """A value as YAML reads it back, whatever is in it: JSON is YAML."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{text}: holds bytes that are not UTF-8, which a configuration cannot") from None
    return text


def say(text: str) -> None:
    """Tell a person; results alone go to standard output."""
    print(text, file=sys.stderr, flush=True)
