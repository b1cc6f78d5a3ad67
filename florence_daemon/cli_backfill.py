"""The backfill command as it is typed: its options, and whether this machine, servers or a cluster do the work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from florence_daemon.command_line import (
    ConfigOption,
    JsonOption,
    LogLevelOption,
    ModelOption,
    Overwrite,
    PromptsOption,
    ResultFormat,
    has_address,
    log_if_asked,
    names_given,
    read_outputs,
    read_settings,
    refuse_both,
    refuse_estimate,
    refuse_servers,
    refuse_without_ray,
    with_servers,
)

if TYPE_CHECKING:
    from florence_daemon.backfill import Backfill
    from florence_daemon.config import Config
    from florence_daemon.config_output import OutputConfig

PathsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="PATH...",
        help="Folders (with all below) or pictures; with --ray or --estimate also s3://bucket/folder.",
    ),
]
ExtsOption = Annotated[
    list[str] | None, typer.Option("--ext", metavar="EXT", help="The sidecar's ending for the prompt before it.")
]
ServersOption = Annotated[
    list[str] | None,
    typer.Option(
        "--server", metavar="URL", help="Let running daemons do the work; may be repeated.", show_default=False
    ),
]
OverwriteOption = Annotated[
    Overwrite | None,
    typer.Option("--overwrite", help="What to do with sidecars that exist; never unless told.", show_default=False),
]
PrefixOption = Annotated[
    str,
    typer.Option(
        "--prefix", metavar="TEXT", help='Put before each text: a trigger word, "ohwx, ".', show_default=False
    ),
]
SuffixOption = Annotated[
    str, typer.Option("--suffix", metavar="TEXT", help="Put behind each text.", show_default=False)
]
TemplateOption = Annotated[
    str | None,
    typer.Option(
        "--template",
        metavar="TEXT",
        help='Several prompts in one file: "{prefix}{caption}, {tags}".',
        show_default=False,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="OPTION=VALUE",
        help="Any other option of an output, as the configuration has it: underscores=spaces. May be repeated.",
        show_default=False,
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only list what would be captioned.")]
EstimateOption = Annotated[
    bool, typer.Option("--estimate", help="Only say how long it would take, after a trial of 32 pictures.")
]
GpusOption = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        metavar="N",
        min=1,
        help="With --estimate: also with N GPUs (or servers) like this one.",
        show_default=False,
    ),
]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray", metavar="ADDRESS", help="Work on a Ray cluster: host:port, auto, or local.", show_default=False
    ),
]
ToOption = Annotated[
    str | None,
    typer.Option(
        "--to",
        metavar="PLACE",
        help="With --ray: a folder or address for all results, no sidecars.",
        show_default=False,
    ),
]
ResultFormatOption = Annotated[
    ResultFormat | None, typer.Option("--format", help="With --to: what it holds; parquet.", show_default=False)
]
BatchOption = Annotated[
    int | None,
    typer.Option(
        "--batch",
        metavar="N",
        min=2,
        max=4096,
        help="With --ray: pictures that an engine has at a time; 64.",
        show_default=False,
    ),
]
EngineCpusOption = Annotated[
    int | None,
    typer.Option(
        "--engine-cpus",
        metavar="N",
        min=1,
        help="With --ray: cores of an engine; without it, an engine has a GPU, or all cores of a machine.",
        show_default=False,
    ),
]
ReportOption = Annotated[
    Path | None,
    typer.Option(
        "--report", metavar="FILE", help="With --ray: write what failed, one JSON object a line.", show_default=False
    ),
]


def backfill(
    paths: PathsArgument,
    prompt: PromptsOption = None,
    ext: ExtsOption = None,
    config: ConfigOption = None,
    model: ModelOption = None,
    server: ServersOption = None,
    overwrite: OverwriteOption = None,
    prefix: PrefixOption = "",
    suffix: SuffixOption = "",
    template: TemplateOption = None,
    set_: SetOption = None,
    dry_run: DryRunOption = False,
    estimate: EstimateOption = False,
    gpus: GpusOption = None,
    ray: RayOption = None,
    to: ToOption = None,
    form: ResultFormatOption = None,
    batch: BatchOption = None,
    engine_cpus: EngineCpusOption = None,
    report: ReportOption = None,
    as_json: JsonOption = False,
    log_level: LogLevelOption = None,
) -> None:
    """Caption everything below some paths once; what has its sidecars already is skipped.

    Each --prompt goes with the --ext behind it; several with a single --ext
    come to be in one file. Without any, it writes .txt and .tag. A file
    .florence.yaml counts as for the daemon, but for what is given here.
    """
    from florence_daemon.backfill_command import list_work, run_backfill

    refuse_both(model, server)
    refuse_estimate(estimate=estimate, dry_run=dry_run, gpus=gpus)
    if not estimate:
        refuse_without_ray(paths, ray, server, to=to, format=form, batch=batch, engine_cpus=engine_cpus, report=report)
    outputs = read_outputs(prompt or [], ext or [], set_ or [], prefix=prefix, suffix=suffix, template=template)
    given = frozenset(names_given(prompt or ext or template, set_ or [], prefix=prefix, suffix=suffix))
    rule = None if overwrite is None else overwrite.value
    log_if_asked(log_level)
    settings = with_servers(read_settings(config, model=model), server or ())
    if ray is not None or (estimate and (to is not None or has_address(paths))):
        from florence_daemon.cluster.command import Wanted, estimate_here, run_on_cluster

        if estimate:
            refuse_servers(settings, "an estimate for a cluster or a store")
        else:
            refuse_servers(settings, "a cluster", "on its machines")
        kind = None if form is None else form.value
        wanted = Wanted(tuple(paths), outputs, given, rule or "never", to, kind, batch or 64, engine_cpus, report)
        if estimate or ray is None:
            raise typer.Exit(estimate_here(wanted, settings, gpus, as_json=as_json))
        raise typer.Exit(run_on_cluster(wanted, settings, ray, dry_run=dry_run, as_json=as_json))
    with _open_work(paths, outputs, given, rule, settings) as work:
        if dry_run:
            raise typer.Exit(list_work(work, as_json=as_json))
        if estimate:
            from florence_daemon.estimate_command import Paths, run_estimate

            raise typer.Exit(run_estimate(Paths(work), settings, gpus, as_json=as_json))
        raise typer.Exit(run_backfill(work, settings, as_json=as_json))


@contextmanager
def _open_work(
    paths: Sequence[str],
    outputs: tuple[OutputConfig, ...],
    given: frozenset[str],
    overwrite: str | None,
    config: Config,
) -> Iterator[Backfill]:
    """What is due in folders of this machine, with the ledger that the daemon keeps too."""
    from florence_daemon.backfill import Backfill, makes_of
    from florence_daemon.daemon import open_ledger

    with closing(open_ledger(config)) as ledger:
        yield Backfill(
            [Path(path) for path in paths],
            outputs,
            ledger,
            makes_of(config),
            overwrite=overwrite,
            given=given,
            watched=config.folders,
        )
