"""Read the settings from a YAML file and the environment; every problem is told with its file, line and key."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import cattrs
import yaml
from cattrs.errors import (
    AttributeValidationNote,
    BaseValidationError,
    ForbiddenExtraKeysError,
    IterableValidationNote,
)
from cattrs.gen import make_dict_structure_fn

from florence_daemon.config import Config, StateConfig
from florence_daemon.config_checks import BadSetting
from florence_daemon.config_output import OutputConfig
from florence_daemon.errors import ConfigError, UsageError

ENV_PREFIX = "FLORENCE_DAEMON_"
ENV_FILE = "FLORENCE_DAEMON_CONFIG"
# The token that clients send; no setting of the server, which is FLORENCE_DAEMON_SERVER__TOKEN.
ENV_CLIENT = "FLORENCE_DAEMON_TOKEN"
# Settings whose values are told to nobody.
TOKENS = (("server", "token"), ("model", "server_token"))
# A file may come to so many values with its aliases written out; a thousand folders with all their settings do not.
MOST_VALUES = 100_000
# No setting has so many digits, and Python refuses to print numbers of some thousands.
MOST_DIGITS = 100


def default_paths(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Where a configuration is looked for when none is named, first match first."""
    if os.name == "nt":
        own = environ.get("XDG_CONFIG_HOME") or environ.get("APPDATA") or "~/AppData/Roaming"
        everyone = Path(environ.get("PROGRAMDATA") or r"C:\ProgramData") / "florence-daemon"
    else:
        own = environ.get("XDG_CONFIG_HOME") or "~/.config"
        everyone = Path("/etc/florence-daemon")
    return (Path(own).expanduser() / "florence-daemon.yaml", everyone / "florence-daemon.yaml")


def state_directory(state: StateConfig, environ: Mapping[str, str]) -> Path:
    """Where the program keeps what it makes: the setting, else the service's directory, else the person's own."""
    if state.dir is not None:
        return state.dir.expanduser().absolute()
    if environ.get("STATE_DIRECTORY"):
        # systemd may give several, by colons, which on Windows are parts of a path.
        return Path(environ["STATE_DIRECTORY"].split(os.pathsep)[0])
    if os.name == "nt":
        return Path(environ.get("LOCALAPPDATA") or "~/AppData/Local").expanduser() / "florence-daemon"
    return Path(environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "florence-daemon"


def find_file(named: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The configuration file to read: the one named, else the environment's, else the first default that exists."""
    if named is None and environ.get(ENV_FILE):
        named = Path(environ[ENV_FILE])
    if named is not None:
        return named
    return next((path for path in default_paths(environ) if path.is_file()), None)


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """Read the configuration; the environment wins over the file, the file over the defaults.

    Raises: ConfigError, with every problem on a line of its own as `FILE:LINE: section.key: what is wrong`.
    """
    return load_text("" if path is None else _read_text(path), path, environ)


def load_text(text: str, path: Path | None, environ: Mapping[str, str]) -> Config:
    """Read the configuration that a file holds, or is to hold. Raises: ConfigError."""
    places = Places(path)
    data = _drop_nulls(parse(text, places, expected="the sections model, server and folders"))
    _overlay_environment(data, environ, places)
    _make_lists(data)
    try:
        config = converter().structure(data, Config)
    except Exception as error:
        problems = [places.say(where, _without_token(where, problem)) for where, problem in problems_of(error, ())]
        raise ConfigError("\n".join(problems)) from None
    base = path.parent if path is not None else Path.cwd()
    folders = tuple(attrs.evolve(folder, path=_absolute(folder.path, base)) for folder in config.folders)
    return attrs.evolve(config, folders=folders)


def _make_lists(data: Any) -> None:
    """Let a setting of which there may be several be one alone."""
    model = data.get("model") if isinstance(data, dict) else None
    if isinstance(model, dict) and isinstance(model.get("server"), str):
        model["server"] = [server.strip() for server in model["server"].split(",")]


def _without_token(where: tuple[Any, ...], problem: str) -> str:
    """What is wrong with a token, without the token: messages go to logs, and to whoever asks for the status."""
    is_shown = where in TOKENS and problem.endswith(" is not text")
    return "is not text; put it between quotes" if is_shown else problem


def read_output(data: dict[str, Any]) -> OutputConfig:
    """Read one output from the command line's options. Raises: UsageError, which names them."""
    try:
        return converter().structure(data, OutputConfig)
    except Exception as error:
        problems = [f"{_option(where)}: {problem}" for where, problem in problems_of(error, ())]
        raise UsageError("\n".join(problems)) from None


def _option(where: tuple[Any, ...]) -> str:
    """What the command line calls a setting of an output."""
    name = str(where[0]) if where else ""
    if name in ("prompt", "prompts"):
        return "--prompt"
    return f"--{name}" if name in ("ext", "prefix", "suffix", "template") else f"--set {name}"


def _absolute(path: Path, base: Path) -> Path:
    return Path(os.path.abspath(base / path.expanduser()))


class Places:
    """Remembers where each setting came from: a line of the file, or a variable of the environment."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.lines: dict[tuple[Any, ...], int] = {}
        self.variables: dict[tuple[Any, ...], str] = {}

    def say(self, where: tuple[Any, ...], problem: str) -> str:
        """`florence-daemon.yaml:7: model.num_beams: 0 is out of range; …`"""
        name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).lstrip(".")
        return f"{self._origin(where)}: {name}: {problem}" if name else f"{self._origin(where)}: {problem}"

    def _origin(self, where: tuple[Any, ...]) -> str:
        for end in range(len(where), -1, -1):
            if where[:end] in self.variables:
                return self.variables[where[:end]]
            if where[:end] in self.lines:
                return f"{self.path}:{self.lines[where[:end]]}"
        return str(self.path or "settings")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such configuration file; give another with --config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from None


def _drop_nulls(data: dict[Any, Any]) -> dict[str, Any]:
    """A section of which nothing but the name is there counts as left out."""
    return {key: value for key, value in data.items() if value is not None}


def parse(text: str, places: Places, *, expected: str, at_most: int = MOST_VALUES) -> dict[Any, Any]:
    """The mapping that YAML text holds; `places` learns its lines.

    expected: what is said when it is none. at_most: how many values it may come to with its aliases written out.
    Raises: ConfigError.
    """
    path = places.path
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            return {}
        if _count(node, {}) > at_most:
            raise ConfigError(f"{path}: this comes to more than {at_most:,} values; that is no configuration")
        data = yaml.safe_load(text)
        _note_lines(node, (), places)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: this is not YAML: {error.problem}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{path}: this is not YAML: {error}") from None
    except ConfigError:
        raise
    except Exception as error:  # PyYAML trips over values that are not what their tag says: `!!bool x`, `!!int ""`
        raise ConfigError(f"{path}: this is not YAML: a value in it is broken ({type(error).__name__})") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}:1: {expected} are expected, not {data!r:.60}")
    return data


def _count(node: yaml.Node, counted: dict[yaml.Node, int]) -> int:
    """How many values there are below a node with its aliases written out: ten lines of them can come to billions."""
    if node not in counted:
        counted[node] = 1  # met again below itself, it is refused when it is constructed
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        inner = (part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,)))
        counted[node] = 1 + sum(_count(part, counted) for part in inner)
    return counted[node]


def _note_lines(node: yaml.Node, where: tuple[Any, ...], places: Places) -> None:
    """Note the line of every key; a key given twice is refused, as YAML would silently take the last."""
    places.lines.setdefault(where, node.start_mark.line + 1)
    _check_length(node, places)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _note_lines(item, (*where, index), places)
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        _check_length(key, places)
        here = (*where, key.value)
        if here in places.lines:
            first = places.lines[here]
            raise ConfigError(f"{places.path}:{key.start_mark.line + 1}: {key.value}: given before, on line {first}")
        places.lines[here] = key.start_mark.line + 1
        _note_lines(value, here, places)


def _check_length(node: yaml.Node, places: Places) -> None:
    """Refuse a number that no message could show, `0xfff…`. Raises: ConfigError."""
    if node.tag == "tag:yaml.org,2002:int" and len(node.value) > MOST_DIGITS:
        line = node.start_mark.line + 1
        raise ConfigError(f"{places.path}:{line}: a number of {len(node.value):,} digits; that is no setting")


def _overlay_environment(data: dict[str, Any], environ: Mapping[str, str], places: Places) -> None:
    """Lay `FLORENCE_DAEMON_MODEL__NAME=demo` and its like over what the file said."""
    for variable, text in sorted(environ.items()):
        if not variable.startswith(ENV_PREFIX) or variable in (ENV_FILE, ENV_CLIENT):
            continue
        section, _, key = variable[len(ENV_PREFIX) :].lower().partition("__")
        if section not in ("model", "server") or not key:
            raise ConfigError(f"{variable}: not a setting; {ENV_PREFIX}MODEL__NAME is how model.name is given")
        holder = data.setdefault(section, {})
        if isinstance(holder, dict):
            holder[key] = text if (section, key) in TOKENS else read_value(text)
            places.variables[(section, key)] = variable


def read_value(text: str) -> Any:
    """A variable's value as YAML reads it. (Not for a token: one of digits alone is text too.)"""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def converter() -> cattrs.Converter:
    """cattrs converts `"3"` to 3 and `"no"` to true; a setting of the wrong type is an error here."""
    made = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
    for kind, accepted, name in ((bool, bool, "true or false"), (int, int, "a whole number"), (str, str, "text")):
        made.register_structure_hook(kind, _exactly(accepted, name))
    made.register_structure_hook(float, _number)
    made.register_structure_hook(Path, lambda value, _: Path(_exactly(str, "a path")(value, str)))
    made.register_structure_hook(str | None, lambda value, _: None if value is None else _text(value, str))
    made.register_structure_hook(str | tuple[str, ...], _name_or_names)
    made.register_structure_hook_func(_is_tuple, lambda value, kind: _tuple(made, value, kind))
    made.register_structure_hook_factory(attrs.has, lambda kind: _section(made, kind))
    return made


def _section(made: cattrs.Converter, kind: type[Any]) -> Callable[[Any, Any], Any]:
    structure = make_dict_structure_fn(kind, made)
    first = attrs.fields(kind)[0].name

    def convert(value: Any, _: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"{value!r:.60} is no settings; write each with its name, such as {first}: …")
        return structure(value, kind)

    return convert


def _exactly(accepted: type, name: str) -> Any:
    def convert(value: Any, _: type) -> Any:
        if type(value) is not accepted:
            raise ValueError(f"{value!r} is not {name}")
        return value

    return convert


_text = _exactly(str, "text")


def _number(value: Any, _: type) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"{value!r} is not a number")
    return float(value)


def _name_or_names(value: Any, _: Any) -> str | tuple[str, ...]:
    """One name, or a list of them: in YAML, or between commas, as in a variable of the environment."""
    if isinstance(value, str):
        names = tuple(name.strip() for name in value.split(","))
        return names if len(names) > 1 else value
    if not isinstance(value, list):
        raise ValueError(f"{value!r:.60} is neither text nor a list of such")
    return tuple(_text(name, str) for name in value)


def _is_tuple(kind: Any) -> bool:
    return getattr(kind, "__origin__", None) is tuple


def _tuple(converter: cattrs.Converter, value: Any, kind: Any) -> tuple[Any, ...]:
    """A YAML list, item by item; a lone string would otherwise become a tuple of its letters. Pairs are a mapping."""
    if kind.__args__[0] == tuple[str, str]:
        if not isinstance(value, dict):
            raise ValueError(f"{value!r:.60} is not a mapping; write old: new, each on a line of its own")
        return tuple((_text(old, str), _text(new, str)) for old, new in value.items())
    if not isinstance(value, list):
        raise ValueError(f"{value!r:.60} is not a list; put each item on a line of its own that begins with '- '")
    return tuple(converter.structure(value, list[kind.__args__[0]]))


def problems_of(error: BaseException, where: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Flatten cattrs' tree of exceptions into (path of the setting, what is wrong)."""
    if isinstance(error, BaseValidationError):
        for inner in error.exceptions:
            yield from problems_of(inner, (*where, *_step(inner)))
    elif isinstance(error, ForbiddenExtraKeysError):
        known = [attribute.name for attribute in attrs.fields(error.cl)]
        for key in sorted(error.extra_fields, key=str):
            yield (*where, key), unknown(str(key), known)
    elif isinstance(error, BadSetting):
        yield (*where, error.setting), str(error)
    elif isinstance(error, KeyError):
        yield where, f"{error.args[0]} is missing"
    else:
        yield where, str(error) or type(error).__name__


def _step(error: BaseException) -> tuple[Any, ...]:
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, AttributeValidationNote):
            return (note.name,)
        if isinstance(note, IterableValidationNote):
            return (note.index,)
    return ()


def unknown(key: str, known: Sequence[str]) -> str:
    """What is said of a setting that there is not."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
    return f"unknown setting; {hint}"
