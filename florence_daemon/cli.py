"""The commands. Each imports what it needs when it is called, so that every one starts quickly."""

from __future__ import annotations

import json
import os
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from florence_daemon import __version__
from florence_daemon.command_line import (
    DEFAULT_SERVER,
    ConfigOption,
    DatasetFormat,
    JsonOption,
    LogFormat,
    LogLevel,
    LogLevelOption,
    ModelOption,
    Names,
    Overwrite,
    Placing,
    Precision,
    PromptsOption,
    ServerOption,
    ServiceAction,
    Setting,
    complete_prompt,
    names_given,
    read_outputs,
    read_settings,
    refuse_both,
    with_given,
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


@app.command()
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
    _log_to_stderr(log_format.value, log_level.value)
    raise typer.Exit(serve(settings, greet=partial(_greet, file), source=source))


@app.command()
def demo(
    directory: Annotated[Path, typer.Option("--dir", metavar="DIR", help="The folder to watch.")] = Path(
        "florence-demo"
    ),
    port: Annotated[int | None, typer.Option(metavar="P", help="Port to listen on.", show_default=False)] = None,
    log_level: LogLevelOption = None,
) -> None:
    """Try it: draw pictures into a folder, watch it with the small model that comes along, print the captions."""
    from florence_daemon.demo import serve_demo

    _log_if_asked(log_level)
    settings = read_settings(None, model="demo", host=None, port=port, watch=[directory], alone=True)
    raise typer.Exit(serve_demo(settings, directory))


@app.command()
def backfill(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Folders (with all below) or pictures.")],
    prompt: PromptsOption = None,
    ext: Annotated[
        list[str] | None, typer.Option(metavar="EXT", help="The sidecar's ending for the prompt before it.")
    ] = None,
    config: ConfigOption = None,
    model: ModelOption = None,
    server: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Let running daemons do the work; may be repeated.", show_default=False),
    ] = None,
    overwrite: Annotated[
        Overwrite | None,
        typer.Option(help="What to do with sidecars that exist; never unless told.", show_default=False),
    ] = None,
    prefix: Annotated[
        str, typer.Option(metavar="TEXT", help='Put before each text: a trigger word, "ohwx, ".', show_default=False)
    ] = "",
    suffix: Annotated[str, typer.Option(metavar="TEXT", help="Put behind each text.", show_default=False)] = "",
    template: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help='Several prompts in one file: "{prefix}{caption}, {tags}".',
            show_default=False,
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="OPTION=VALUE",
            help="Any other option of an output, as the configuration has it: underscores=spaces. May be repeated.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be captioned.")] = False,
    as_json: JsonOption = False,
    log_level: LogLevelOption = None,
) -> None:
    """Caption everything below some paths once; what has its sidecars already is skipped.

    Each --prompt goes with the --ext behind it; several with a single --ext
    come to be in one file. Without any, it writes .txt and .tag. A file
    .florence.yaml counts as for the daemon, but for what is given here.
    """
    from florence_daemon.backfill import Backfill, makes_of
    from florence_daemon.backfill_command import list_work, run_backfill
    from florence_daemon.daemon import open_ledger

    refuse_both(model, server)
    outputs = read_outputs(prompt or [], ext or [], set_ or [], prefix=prefix, suffix=suffix, template=template)
    _log_if_asked(log_level)
    settings = read_settings(config, model=model)
    with closing(open_ledger(settings)) as ledger:
        work = Backfill(
            paths,
            outputs,
            ledger,
            makes_of(settings, server or ()),
            overwrite=None if overwrite is None else overwrite.value,
            given=names_given(prompt or ext or template, set_ or [], prefix=prefix, suffix=suffix),
            watched=settings.folders,
            on_unreadable=lambda error: print(
                f"{error.filename}: cannot be looked into: {error.strerror}", file=sys.stderr
            ),
        )
        if dry_run:
            raise typer.Exit(list_work(work, as_json=as_json))
        raise typer.Exit(run_backfill(work, settings, server or [], as_json=as_json))


@app.command()
def caption(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="The pictures.")],
    prompt: Annotated[str, typer.Option(metavar="NAME", help="What to ask.", autocompletion=complete_prompt)] = (
        "MORE_DETAILED_CAPTION"
    ),
    text: Annotated[str | None, typer.Option(metavar="TEXT", help="For prompts that take text.")] = None,
    config: ConfigOption = None,
    model: ModelOption = None,
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="Ask a running daemon instead of loading a model.")
    ] = None,
    num_beams: Annotated[int | None, typer.Option(metavar="N", min=1, max=16, help="Beams; 1 is fastest.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(metavar="N", min=1, max=4096, help="Longest answer.")] = None,
    draw: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Draw what was found into copies: a file for one picture, a folder for several.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
    log_level: LogLevelOption = None,
) -> None:
    """Caption pictures and print the answers; no sidecar is written."""
    from florence_daemon.caption_command import ask_engine, ask_server, print_answers
    from florence_daemon.engine.protocol import Ask
    from florence_daemon.tasks import find_task

    refuse_both(model, server)
    task, inline = find_task(prompt, text)
    ask = Ask(task.token, inline, num_beams, max_new_tokens)
    drawings = None
    if draw is not None:
        from florence_daemon.drawing_files import check_task, choose_names

        check_task(task)
        drawings = choose_names(images, draw)
    _log_if_asked(log_level)
    settings = read_settings(config, model=model)
    answering = ask_server(server, settings) if server else ask_engine(settings)
    with answering as answer:
        code = print_answers(images, ask, answer, as_json=as_json, drawings=drawings)
    raise typer.Exit(code)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="PATH", help="The folder, with all below.")],
    form: Annotated[DatasetFormat, typer.Option("--format", help="What to write.", show_default=False)],
    to: Annotated[
        Path,
        typer.Option(metavar="TARGET", help="A new folder (hf-imagefolder, webdataset) or file.", show_default=False),
    ],
    caption: Annotated[str, typer.Option(metavar="EXT", help="The ending of the captions.")] = "txt",
    tags: Annotated[str, typer.Option(metavar="EXT", help="The ending of the tags, where there are any.")] = "tag",
    pictures: Annotated[Placing, typer.Option(help="How hf-imagefolder gets the pictures.")] = Placing.copy,
    names: Annotated[
        Names | None,
        typer.Option(help="kohya-json (else absolute) and csv (else relative): paths, or from PATH on."),
    ] = None,
    shard_samples: Annotated[
        int, typer.Option(metavar="N", min=1, max=10_000, help="webdataset: most pictures in a shard.")
    ] = 10_000,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there already.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the pictures of a folder and their captions as a data set that other programs load.

    Pictures without a usable caption are left out and listed, and the exit
    code is 1. Nothing in PATH is changed.
    """
    from florence_daemon.datasets.export import Wish
    from florence_daemon.export_command import open_tree, run_export

    relative = None if names is None else names is Names.relative
    wish = Wish(form.value, to, pictures.value, relative, overwrite, shard_samples)
    raise typer.Exit(run_export(open_tree(folder, caption, tags, to), wish, as_json=as_json))


@app.command()
def lint(
    folder: Annotated[Path, typer.Argument(metavar="PATH", help="The folder, with all below.")],
    ext: Annotated[
        list[str] | None,
        typer.Option(metavar="EXT", help="The ending of the captions; may be repeated. Without it: txt."),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(metavar="N", help="What your trainer takes of a caption: 75, 225 or 512.")
    ] = 75,
    as_json: JsonOption = False,
) -> None:
    """Tell what a trainer would stumble over: missing, empty, broken or too long captions, and more.

    The exit code is 1 when there is something. Nothing is changed.
    """
    from florence_daemon.datasets.lint import Lint
    from florence_daemon.export_command import open_tree, suffix_of
    from florence_daemon.lint_command import check_limit, run_lint

    suffixes = [suffix_of(each) for each in ext or ["txt"]]
    check_limit(max_tokens)
    raise typer.Exit(run_lint(Lint(open_tree(folder, "txt", "tag"), suffixes, max_tokens), as_json=as_json))


@app.command()
def pull(
    config: ConfigOption = None,
    model: ModelOption = None,
    log_level: LogLevelOption = None,
) -> None:
    """Download a checkpoint, or look for it on this machine, and verify it."""
    from florence_daemon.engine import checkpoint

    settings = read_settings(config, model=model).model
    _log_to_stderr(level=(log_level or LogLevel.info).value)
    if settings.offline:
        directory = checkpoint.find(settings.name, settings.revision, offline=True)
    else:
        directory = checkpoint.download(settings.name, settings.revision)
    checkpoint.verify(directory)
    print(directory)


@app.command()
def quantize(
    calibrate: Annotated[Path, typer.Option(metavar="DIR", help="Pictures such as those that will be captioned.")],
    model: ModelOption = None,
    config: ConfigOption = None,
    pictures: Annotated[int, typer.Option(metavar="N", help="How many to take from all over DIR.")] = 100,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="What to ask; may be repeated. Without it: MORE_DETAILED_CAPTION, GENERATE_TAGS and OD.",
            show_default=False,
        ),
    ] = None,
    precision: Annotated[Precision, typer.Option(help="What to try; float32 tries a smaller picture alone.")] = (
        Precision.int8
    ),
    image_size: Annotated[
        int | None,
        typer.Option(metavar="PX", help="Side of the picture to try, if another than configured.", show_default=False),
    ] = None,
    compare_size: Annotated[
        int | None,
        typer.Option(metavar="PX", help="Side for float32, if another than configured.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
    log_level: LogLevelOption = None,
) -> None:
    """Make the model faster on a CPU, and prove on your own pictures that it says the same.

    One half of the pictures serves to make the model's int8 form. About the
    other half, int8 and the usual float32 are asked the same: printed is how
    far their answers agree, and how much faster int8 is. Where they agree well,
    precision auto takes int8 from then on; where not, the exit code is 1.

    A smaller picture is faster too: --image-size 576 compares int8 at 576
    pixels with float32 at the usual size. With --precision float32 besides,
    the size alone is compared, and nothing is made.
    """
    from florence_daemon.quantize_command import Wish, run_quantize

    _log_if_asked(log_level)
    settings = read_settings(config, model=model)
    for size in (image_size, compare_size):
        with_given(settings.model, image_size=size)  # says what is wrong with it
    wish = Wish(calibrate, pictures, tuple(prompt or ()), precision.value, image_size, compare_size)
    raise typer.Exit(run_quantize(wish, settings, as_json=as_json))


@app.command()
def bench(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[PICTURES]...", help="Pictures, or folders of them; else the configured folders'."),
    ] = None,
    model: ModelOption = None,
    config: ConfigOption = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="What to ask; may be repeated. Without it: MORE_DETAILED_CAPTION and GENERATE_TAGS.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        list[Setting] | None, typer.Option("--try", help="Change this setting alone; may be repeated.")
    ] = None,
    pictures: Annotated[int | None, typer.Option(metavar="N", min=1, help="How many to take; 12.")] = None,
    rounds: Annotated[int | None, typer.Option(metavar="N", min=1, help="How often each is measured; 3.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="4 pictures, 1 round, and fewer settings.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Time this machine and model on your own pictures, and say which settings to choose.

    Each setting is tried on its own beside the settings as they are, in engine
    processes of its own: pictures an hour, seconds for one picture, and how
    many of the answers stay the same. Nothing is written beside the pictures.
    """
    from florence_daemon.bench_command import Wish, run_bench

    settings = read_settings(config, model=model)
    kinds = tuple(each.value for each in only or ())
    wish = Wish(tuple(paths or ()), pictures, rounds, tuple(prompt or ()), kinds, quick)
    raise typer.Exit(run_bench(wish, settings, as_json=as_json))


@app.command()
def model(server: ServerOption = DEFAULT_SERVER) -> None:
    """Print which model a daemon answers with."""
    print(_client(server).model())


@app.command()
def prompts(server: ServerOption = DEFAULT_SERVER) -> None:
    """Print the prompts a daemon knows."""
    print("\n".join(_client(server).prompts()))


@app.command()
def status(server: ServerOption = DEFAULT_SERVER, as_json: JsonOption = False) -> None:
    """Print what a daemon is doing: model, queue, folders, and every image that failed with its reason."""
    from florence_daemon.status_text import print_lines, status_lines

    now = _client(server).status()
    if as_json:
        print(json.dumps(now))
    else:
        print_lines(status_lines(now))


@app.command()
def ps(server: ServerOption = DEFAULT_SERVER, as_json: JsonOption = False) -> None:
    """Print which model a daemon has loaded, where, how large it is, and when it goes."""
    from florence_daemon.status_text import print_lines, ps_lines

    now = _client(server).status()
    if as_json:
        print(json.dumps(now["model"]))
    else:
        print_lines(ps_lines(now))


@app.command()
def retry(
    path: Annotated[
        str | None, typer.Argument(metavar="[PATH]", help="An image or a folder; all without it.", show_default=False)
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Have a daemon try failed images again: all, or those at or below a path."""
    _act(server, "retry", path, "{retried} images are tried again", as_json=as_json)


@app.command()
def rescan(
    path: Annotated[
        str | None, typer.Argument(metavar="[PATH]", help="A watched folder, or what is in it.", show_default=False)
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Have a daemon look at its watched folders now: all, or the one that a path is in."""
    _act(server, "rescan", path, "{rescanned} folders are scanned", as_json=as_json)


@app.command()
def forget(
    path: Annotated[str, typer.Argument(metavar="PATH", help="An image, or a folder of images.")],
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Have a daemon drop what it has noted about images; sidecars beside them then count as yours."""
    _act(server, "forget", path, "{forgotten} images are forgotten", as_json=as_json)


@app.command()
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


@app.command("check-config")
def check_config(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", show_default=False)] = None,
) -> None:
    """Say whether a configuration is right, and what it comes to."""
    from florence_daemon import config_file

    found = config_file.find_file(file, os.environ)
    settings = config_file.load(found, os.environ)
    print(f"{found or 'no configuration file; the defaults'}: ok")
    print(f"model {settings.model.name}, HTTP at {settings.server.host}:{settings.server.port}")
    for folder in settings.folders:
        writes = ", ".join(f"{' and '.join(output.prompt_names)} to {output.ending}" for output in folder.outputs)
        print(f"{folder.path}: {writes}{'' if folder.path.is_dir() else ' (not there yet)'}")


@app.command()
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


def _act(server: str, action: str, path: str | None, text: str, *, as_json: bool) -> None:
    """Have a daemon do something, and print how much there was to do. path: relative ones start here."""
    if path is not None and not path.startswith("/"):  # on Windows, too: it can be a path of the server
        path = os.path.abspath(path)
    counts = _client(server).act(action, path)
    print(json.dumps(counts) if as_json else text.format(**counts))


def _greet(file: Path | None, settings: Config, address: str) -> None:
    """Show the banner to a person at a terminal; in a log its lines would only repeat others."""
    if sys.stderr.isatty():
        from florence_daemon.banner import greet

        greet(settings, address, file)


def _client(server: str) -> Any:
    from florence_daemon.client import open_client

    return open_client(server)


def _log_if_asked(level: LogLevel | None) -> None:
    if level is not None:
        _log_to_stderr(level=level.value)


def _log_to_stderr(form: str = "text", level: str = "info") -> None:
    from florence_daemon import logs

    logs.set_up(form, level, sys.stderr, os.environ)


if __name__ == "__main__":
    main()
