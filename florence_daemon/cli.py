"""The commands. Each imports what it needs when it is called, so that every one starts quickly."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from florence_daemon import __version__, cli_backfill, cli_pictures, cli_server
from florence_daemon.command_line import (
    ConfigOption,
    LogFormat,
    LogLevel,
    LogLevelOption,
    ModelOption,
    Overwrite,
    PromptsOption,
    ServiceAction,
    log_if_asked,
    log_to_stderr,
    read_outputs,
    read_settings,
)
from florence_daemon.errors import ConfigError, FlorenceError, UsageError

if TYPE_CHECKING:
    from florence_daemon.config import Config

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_CONFIG = 78

app = typer.Typer(
    help="Captions the pictures people drop into folders, with Florence-2.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run a command; errors that are meant for a person are printed as one, without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        # File names may hold anything; printing one must not fail.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        app()
    except FlorenceError as error:
        print(f"florence-daemon: {error}", file=sys.stderr)
        sys.exit(_exit_code(error))
    except BrokenPipeError:
        # `florence-daemon prompts | head -1`: the reader has gone, which is no error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _exit_code(error: FlorenceError) -> int:
    if isinstance(error, ConfigError):
        return EXIT_CONFIG
    return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED


@app.callback(invoke_without_command=True)
def florence_daemon(
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    """Captions the pictures people drop into folders, with Florence-2."""
    if version:
        print(f"florence-daemon {__version__}")
        raise typer.Exit


def run(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(metavar="H", help="Address to listen on.", show_default=False)] = None,
    port: Annotated[int | None, typer.Option(metavar="P", help="Port to listen on.", show_default=False)] = None,
    model: ModelOption = None,
    watch: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="Watch this folder too; may be repeated.")
    ] = None,
    log_format: Annotated[LogFormat, typer.Option(help="Lines for people, or one JSON object a line.")] = (
        LogFormat.text
    ),
    log_level: Annotated[LogLevel, typer.Option(help="The least that is logged.")] = LogLevel.info,
) -> None:
    """Watch the configured folders and answer HTTP requests, until stopped."""
    from florence_daemon.config_file import find_file
    from florence_daemon.daemon import serve
    from florence_daemon.reload import Source

    file = find_file(config, os.environ)
    source = Source(file, partial(read_settings, file, model=model, host=host, port=port, watch=watch or ()))
    settings = source.read()
    log_to_stderr(log_format.value, log_level.value)
    raise typer.Exit(serve(settings, greet=partial(_greet, file), source=source))


def demo(
    directory: Annotated[Path, typer.Option("--dir", metavar="DIR", help="The folder to watch.")] = Path(
        "florence-demo"
    ),
    port: Annotated[int | None, typer.Option(metavar="P", help="Port to listen on.", show_default=False)] = None,
    log_level: LogLevelOption = None,
) -> None:
    """Try it: draw pictures into a folder, watch it with the small model that comes along, print the captions."""
    from florence_daemon.demo import serve_demo

    log_if_asked(log_level)
    settings = read_settings(None, model="demo", host=None, port=port, watch=[directory], alone=True)
    raise typer.Exit(serve_demo(settings, directory))


def init(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="Where to; without it, where every command looks.", show_default=False),
    ] = None,
    model: ModelOption = None,
    folder: Annotated[
        list[Path] | None, typer.Option("--folder", metavar="DIR", help="A folder to watch; may be repeated.")
    ] = None,
    prompt: PromptsOption = None,
    ext: Annotated[
        list[str] | None, typer.Option(metavar="EXT", help="The sidecar's ending for the prompt before it.")
    ] = None,
    trigger: Annotated[str, typer.Option(metavar="WORD", help="A word to begin each text with.")] = "",
    template: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help='Several prompts in one file: "{prefix}{caption}, {tags}".'),
    ] = None,
    overwrite: Annotated[Overwrite, typer.Option(help="What to do with sidecars that exist.")] = Overwrite.never,
    idle_unload_s: Annotated[
        float | None,
        typer.Option("--idle-unload-s", metavar="S", help="Seconds without work until the model is unloaded."),
    ] = None,
    host: Annotated[str | None, typer.Option(metavar="H", help="Address to listen on.", show_default=False)] = None,
    port: Annotated[int | None, typer.Option(metavar="P", help="Port to listen on.", show_default=False)] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a configuration that is there.")] = False,
) -> None:
    """Write a first configuration: with these options, or, at a terminal without any, by asking."""
    from florence_daemon import config_file, init_command

    path = file or config_file.default_paths(os.environ)[0]
    if path.exists() and not force:
        raise init_command.taken(path)
    given: dict[str, Any] = {"model": model, "idle_unload_s": idle_unload_s, "host": host, "port": port}
    if prompt or ext or trigger or template:
        prefix = f"{trigger}, " if trigger else None
        given["outputs"] = read_outputs(prompt or [], ext or [], prefix=prefix, template=template)
    wish = init_command.Wish(
        folders=tuple(folder or ()),
        overwrite=overwrite.value,
        **{name: value for name, value in given.items() if value is not None},
    )
    if wish == init_command.Wish() and sys.stdin.isatty():
        wish = init_command.ask(wish)
    init_command.write_configuration(path, wish, force=force)
    print(path)
    named = "" if file is None else f" --config {path}"
    init_command.say(
        f"Start it with `florence-daemon run{named}`; `florence-daemon service install{named}` keeps it running."
    )


def check_config(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", show_default=False)] = None,
) -> None:
    """Say whether a configuration is right, and what it comes to."""
    from florence_daemon import config_file

    found = config_file.find_file(file, os.environ)
    settings = config_file.load(found, os.environ)
    print(f"{found or 'no configuration file; the defaults'}: ok")
    model = ", ".join(settings.model.server) or settings.model.name
    print(f"model {model}, HTTP at {settings.server.host}:{settings.server.port}")
    for folder in settings.folders:
        writes = ", ".join(f"{' and '.join(output.prompt_names)} to {output.ending}" for output in folder.outputs)
        print(f"{folder.path}: {writes}{'' if folder.path.is_dir() else ' (not there yet)'}")


def service(
    action: Annotated[ServiceAction, typer.Argument(metavar="install|uninstall|print", help="What to do with it.")],
    config: ConfigOption = None,
    system: Annotated[
        bool | None,
        typer.Option("--system/--user", help="Linux: the system's, or your own; as root --system.", show_default=False),
    ] = None,
    name: Annotated[str, typer.Option(metavar="NAME", help="Windows: the service's name.")] = "florence-daemon",
    nssm: Annotated[
        Path | None, typer.Option("--nssm", metavar="PATH", help="Windows: nssm.exe.", show_default=False)
    ] = None,
) -> None:
    """Have systemd, or NSSM on Windows, run it: install and start the service, remove it, or print what would be."""
    if os.name == "nt":
        from florence_daemon import nssm as windows_service

        if action is ServiceAction.uninstall:
            windows_service.uninstall(name, nssm)
        elif action is ServiceAction.install:
            windows_service.install(config, name, nssm)
        else:
            windows_service.show(config, name, nssm)
        return
    from florence_daemon import service as systemd_service

    if action is ServiceAction.uninstall:
        systemd_service.uninstall(system)
    elif action is ServiceAction.install:
        systemd_service.install(config, system)
    else:
        systemd_service.show(config, system)


def _greet(file: Path | None, settings: Config, address: str) -> None:
    """Show the banner to a person at a terminal; in a log its lines would only repeat others."""
    if sys.stderr.isatty():
        from florence_daemon.banner import greet

        greet(settings, address, file)


COMMANDS = (
    run,
    demo,
    cli_backfill.backfill,
    cli_pictures.caption,
    cli_pictures.export,
    cli_pictures.lint,
    cli_pictures.pull,
    cli_pictures.quantize,
    cli_pictures.bench,
    cli_server.model,
    cli_server.prompts,
    cli_server.status,
    cli_server.ps,
    cli_server.retry,
    cli_server.rescan,
    cli_server.forget,
    init,
    check_config,
    service,
)
for command in COMMANDS:
    app.command()(command)


if __name__ == "__main__":
    main()
