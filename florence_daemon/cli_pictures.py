"""The commands that work here, on pictures, captions and models: a model is loaded, or a daemon is asked to do it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from florence_daemon.command_line import (
    ConfigOption,
    DatasetFormat,
    JsonOption,
    LogLevel,
    LogLevelOption,
    ModelOption,
    Names,
    Placing,
    Precision,
    Setting,
    complete_prompt,
    log_if_asked,
    log_to_stderr,
    read_settings,
    refuse_both,
    refuse_servers,
    with_given,
)


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
    log_if_asked(log_level)
    settings = read_settings(config, model=model)
    answering = ask_server(server, settings) if server else ask_engine(settings)
    with answering as answer:
        code = print_answers(images, ask, answer, as_json=as_json, drawings=drawings)
    raise typer.Exit(code)


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


def pull(
    config: ConfigOption = None,
    model: ModelOption = None,
    log_level: LogLevelOption = None,
) -> None:
    """Download a checkpoint, or look for it on this machine, and verify it."""
    from florence_daemon.engine import checkpoint

    settings = read_settings(config, model=model).model
    log_to_stderr(level=(log_level or LogLevel.info).value)
    if settings.server:
        print(f"nothing to download: {', '.join(settings.server)} has the model (model.server)")
        return
    if settings.offline:
        directory = checkpoint.find(settings.name, settings.revision, offline=True)
    else:
        directory = checkpoint.download(settings.name, settings.revision)
    checkpoint.verify(directory)
    print(directory)


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

    log_if_asked(log_level)
    settings = read_settings(config, model=model)
    refuse_servers(settings, "quantize")
    for size in (image_size, compare_size):
        with_given(settings.model, image_size=size)  # says what is wrong with it
    wish = Wish(calibrate, pictures, tuple(prompt or ()), precision.value, image_size, compare_size)
    raise typer.Exit(run_quantize(wish, settings, as_json=as_json))


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
    refuse_servers(settings, "bench")
    kinds = tuple(each.value for each in only or ())
    wish = Wish(tuple(paths or ()), pictures, rounds, tuple(prompt or ()), kinds, quick)
    raise typer.Exit(run_bench(wish, settings, as_json=as_json))
