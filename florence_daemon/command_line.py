"""The words of the command line: options that several commands share, choices, and the settings they come to."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from florence_daemon.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from florence_daemon.config import Config, ModelConfig, ServerConfig
    from florence_daemon.config_output import OutputConfig

Section = TypeVar("Section", "ModelConfig", "ServerConfig")
DEFAULT_SERVER = "http://127.0.0.1:54880"


def complete_prompt(begun: str) -> list[str]:
    """The prompts that a shell offers when Tab is pressed."""
    from florence_daemon.tasks import prompt_tokens

    names = (token.strip("<>") for token in prompt_tokens())
    return [name for name in names if name.startswith(begun)]


ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Configuration file (YAML).", show_default=False)
]
ModelOption = Annotated[
    str | None, typer.Option("--model", metavar="M", help="A Hub id, a local directory, or demo.", show_default=False)
]
ServerOption = Annotated[str, typer.Option("--server", metavar="URL", envvar="VISION_HOST", help="The daemon to ask.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]
PromptsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt",
        metavar="NAME",
        help="What to ask; goes with --ext.",
        show_default=False,
        autocompletion=complete_prompt,
    ),
]


class Overwrite(str, Enum):
    """What happens to sidecars that are there already."""

    never = "never"
    stale = "stale"
    append = "append"
    prepend = "prepend"
    always = "always"


class ServiceAction(str, Enum):
    """What can be done with the service."""

    install = "install"
    uninstall = "uninstall"
    print = "print"


class LogFormat(str, Enum):
    """What a line of the log looks like."""

    text = "text"
    json = "json"


class LogLevel(str, Enum):
    """What is important enough to be logged."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


class Setting(str, Enum):
    """What bench can change."""

    engine = "engine"
    precision = "precision"
    num_beams = "num_beams"
    max_batch = "max_batch"
    image_size = "image_size"


LogLevelOption = Annotated[
    LogLevel | None,
    typer.Option(help="Log to standard error what is at least so important.", show_default=False),
]


class Precision(str, Enum):
    """What quantize can try."""

    int8 = "int8"
    float32 = "float32"


class DatasetFormat(str, Enum):
    """What export can write."""

    hf_imagefolder = "hf-imagefolder"
    kohya_json = "kohya-json"
    csv = "csv"
    webdataset = "webdataset"


class ResultFormat(str, Enum):
    """What a backfill on a cluster can put its results into."""

    parquet = "parquet"
    jsonl = "jsonl"
    webdataset = "webdataset"


class Placing(str, Enum):
    """How pictures get into a data set that has a folder of its own."""

    copy = "copy"
    hardlink = "hardlink"
    symlink = "symlink"


class Names(str, Enum):
    """How a data set of one file calls its pictures."""

    absolute = "absolute"
    relative = "relative"


def read_settings(
    file: Path | None,
    *,
    model: str | None = None,
    host: str | None = None,
    port: int | None = None,
    watch: Sequence[Path] = (),
    alone: bool = False,
) -> Config:
    """The configuration with the command line laid over it; `alone` leaves every file out.

    Raises: ConfigError, UsageError.
    """
    import attrs

    from florence_daemon import config_file
    from florence_daemon.config import FolderConfig

    settings = config_file.load(None if alone else config_file.find_file(file, os.environ), os.environ)
    folders = tuple(FolderConfig(path=path.absolute()) for path in watch)
    return attrs.evolve(
        settings,
        model=with_given(settings.model, name=model, server=None if model is None else ()),
        server=with_given(settings.server, host=host, port=port),
        folders=(*settings.folders, *folders),
    )


def with_given(section: Section, **given: Any) -> Section:
    """A section with what the command line gave. Raises: UsageError, ConfigError."""
    import attrs

    from florence_daemon.config_checks import BadSetting, MissingToken

    try:
        return attrs.evolve(section, **{name: value for name, value in given.items() if value is not None})
    except BadSetting as error:
        kind = ConfigError if isinstance(error, MissingToken) else UsageError
        raise kind(f"--{error.setting.replace('_', '-')}: {error}") from None


def with_servers(config: Config, servers: Sequence[str]) -> Config:
    """The configuration with these servers, which the command line names; each with what it asks for.

    Raises: UsageError when one is no address, or each of them wants a token of its own.
    """
    if not servers:
        return config
    import attrs

    from florence_daemon.client import token_for

    addresses = tuple(server.rstrip("/") if "://" in server else f"http://{server.rstrip('/')}" for server in servers)
    # A server that the configuration does not name must not learn the token of those that it does.
    own = config.model.server_token if set(addresses) <= set(config.model.server) else None
    tokens = {token_for(address, config.server) or own for address in addresses}
    if len(tokens) > 1:
        raise UsageError("--server: they ask for different tokens; set FLORENCE_DAEMON_TOKEN to one that all take")
    model = with_given(config.model, server=addresses, server_token=tokens.pop())
    # Nothing listens here, so no address can be this process' own.
    return attrs.evolve(config, model=model, server=attrs.evolve(config.server, port=0))


def refuse_servers(config: Config, what: str, where: str = "on this machine") -> None:
    """Refuse what needs a model of its own, where the configuration has servers instead. Raises: UsageError."""
    if config.model.server:
        names = ", ".join(config.model.server)
        raise UsageError(f"{what} needs the model {where}, and model.server names {names}: give --model")


def refuse_both(model: str | None, server: object) -> None:
    """Refuse --model together with --server. Raises: UsageError."""
    if server and model:
        raise UsageError("--model and --server do not go together: a server answers with the model it was started with")


def refuse_estimate(*, estimate: bool, dry_run: bool, gpus: int | None) -> None:
    """Refuse what does not go together with an estimate, or not without one. Raises: UsageError."""
    if not estimate and gpus is not None:
        raise UsageError("--gpus goes with --estimate: a backfill itself takes the GPUs that model.device names")
    if estimate and dry_run:
        raise UsageError("--estimate and --dry-run do not go together: one says how long it takes, one lists what")


def has_address(paths: Sequence[str]) -> bool:
    """Tell whether one of these is in a store, as `s3://bucket/photos`, and not on this machine."""
    return any(re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path) for path in paths)


def refuse_without_ray(paths: Sequence[str], ray: str | None, server: object, **of_ray: object) -> None:
    """Refuse what needs a cluster when there is none, and what one has no use for. Raises: UsageError."""
    if ray is None:
        given = next((name for name, value in of_ray.items() if value is not None), None)
        if given is not None:
            option = f"--{given.replace('_', '-')}"
            raise UsageError(f"{option} goes with --ray; for this machine alone give --ray local {option}")
        address = next((path for path in paths if has_address([path])), None)
        if address is not None:
            raise UsageError(f"{address} is no folder of this machine; add --ray local to work on it from here")
    elif server:
        raise UsageError("--ray and --server do not go together: each engine of the cluster has the model itself")
    elif of_ray["format"] is not None and of_ray["to"] is None:
        raise UsageError("--format goes with --to PLACE: without it, sidecars are written")


def read_outputs(
    prompts: Sequence[str],
    exts: Sequence[str],
    others: Sequence[str] = (),
    **options: str | None,
) -> tuple[OutputConfig, ...]:
    """The outputs that the command line asks for. others: further options, as OPTION=VALUE. Raises: UsageError."""
    from florence_daemon import config_file
    from florence_daemon.config import FolderConfig
    from florence_daemon.config_checks import BadSetting

    shared = {name: value for name, value in options.items() if value} | _split_options(others)
    files = _pair(prompts, exts, options.get("template"))
    outputs = tuple(config_file.read_output({"prompts": asked, "ext": ext} | shared) for asked, ext in files)
    try:
        return FolderConfig(path=Path(), outputs=outputs).outputs
    except BadSetting as error:
        raise UsageError(f"--ext: {error}") from None


def names_given(outputs: object, others: Sequence[str], **options: str | None) -> set[str]:
    """What the command line says of outputs, which counts more than what a directory says."""
    from florence_daemon.overrides import OWN

    names = {name for name, value in options.items() if value} | set(_split_options(others))
    return {"outputs" if name in OWN else name for name in names} | ({"outputs"} if outputs else set())


def _pair(prompts: Sequence[str], exts: Sequence[str], template: str | None) -> list[tuple[list[str], str]]:
    """Which prompts go into the file of which ending. Raises: UsageError."""
    from florence_daemon.config_output import DEFAULT_OUTPUTS

    if not prompts and template is not None and len(exts) < 2:
        # The usual prompts, as far as the template has a place for them.
        kinds = zip(("{caption}", "{tags}"), DEFAULT_OUTPUTS, strict=True)
        usual = [name for kind, output in kinds if kind in template for name in output.prompt_names]
        if not usual:
            raise UsageError(
                f"--template: {template!r} has no {{caption}} and no {{tags}}; name its prompts with --prompt"
            )
        return [(usual, exts[0] if exts else DEFAULT_OUTPUTS[0].ext)]
    if not prompts and not exts:
        return [(list(output.prompt_names), output.ext) for output in DEFAULT_OUTPUTS]
    if prompts and len(exts) == 1:
        return [(list(prompts), exts[0])]
    if len(prompts) != len(exts):
        raise UsageError(
            f"{len(prompts)} --prompt and {len(exts)} --ext: each --prompt NAME needs one --ext EXT, or all of them one"
        )
    return [([prompt], ext) for prompt, ext in zip(prompts, exts, strict=True)]


def _split_options(words: Sequence[str]) -> dict[str, Any]:
    from florence_daemon import config_file

    options = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign:
            raise UsageError(f"--set {word}: give OPTION=VALUE, as in underscores=spaces")
        options[name.strip()] = config_file.read_value(value)
    return options


def log_if_asked(level: LogLevel | None) -> None:
    if level is not None:
        log_to_stderr(level=level.value)


def log_to_stderr(form: str = "text", level: str = "info") -> None:
    from florence_daemon import logs

    logs.set_up(form, level, sys.stderr, os.environ)
