"""A run of the engine's benchmark as Markdown: the machine, a table a size, the floors, the aims."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.aims import find_aims
from benchmarks.chart import Bar, draw_chart
from benchmarks.results import Plan, Result, Row, SizeResult, usual

_NONE = "–"


def write_report(result: Result, chart: str) -> str:
    """Write the page. chart: the picture's file name beside it."""
    parts = [
        "# Benchmarks",
        "",
        *_introduction(result, chart),
        *(line for found in result.sizes for line in _size(found, result.plan)),
        *_aims(result),
        *_machine(result),
    ]
    return "\n".join(parts) + "\n"


def write_chart(result: Result) -> str:
    """Draw the ratios to transformers of all sizes."""
    bars = [
        Bar(f"{found.size}: {_name(row)}", found.faster_backfill(letter), found.faster_alone(letter))
        for found in result.sizes
        for letter, row in found.rows.items()
        if not row.unable
    ]
    return draw_chart("Times as fast as transformers' generate, same run, median of the rounds", bars)


def _introduction(result: Result, chart: str) -> list[str]:
    plan = result.plan
    device = f" --device {plan.device}" if plan.device != "cpu" else ""
    few = (
        f" Transformers did {plan.reference_pictures} of the {plan.pictures}: it takes them one by one, so its pace "
        "does not depend on how many there are."
        if plan.reference_pictures < plan.pictures
        else ""
    )
    return [
        f"Written by `python -m benchmarks.engine{device} --write`; nothing on this page is estimated.",
        "",
        f"![How many times as fast as transformers]({chart})",
        "",
        "Florence-2 in its published sizes with random weights (float16 on disk, as published), "
        f"{plan.new_tokens} new tokens, 3 beams, no repeated 3-grams. Photographs of 4000 × 3000 pixels "
        "(scikit-image's, cropped, JPEG); every time is from the file to the text. Each contender is a process of its "
        f"own; they work in turn, {plan.rounds} rounds in one run. Ratios are to (a) within each round; the median "
        "round is printed. "
        f"A backfill is {plan.pictures} pictures, ours up to {plan.batch or 'as many as fit'} at a time.{few}",
        "",
        "(a) is `Florence2ForConditionalGeneration.from_pretrained` and `generate`, one picture at a time, as servers "
        "do today; what Florence2Processor does is done by Pillow and the checkpoint's tokenizer.",
        "",
    ]


def _size(found: SizeResult, plan: Plan) -> list[str]:
    rows = found.rows.items()
    speed = [
        [
            _title(letter, row),
            _seconds(usual(row.alone_s)),
            _times(found.faster_alone(letter)),
            _number(usual(row.per_s), 3),
            _times(found.faster_backfill(letter)),
            _times(row.second_prompt),
            _same(row),
        ]
        for letter, row in rows
        if not row.unable
    ]
    life = [
        [
            _title(letter, row),
            _seconds(usual(row.ready_s)),
            _seconds(usual(row.first_s)),
            _number(row.loaded.resident_mb if row.loaded else None, 0),
            _number(row.idle.peak_mb if row.idle else None, 0),
            _number(row.idle.resident_mb if row.idle else None, 0),
        ]
        for letter, row in rows
        if not row.unable
    ]
    absent = [f"{_title(letter, row)} could not take part: {row.unable}" for letter, row in rows if row.unable]
    short = [
        f"**{_title(letter, row)} gave {row.short} answers that are not of {plan.new_tokens} tokens.**"
        for letter, row in rows
        if row.short
    ]
    speed_head = [
        "",
        "one picture",
        "× (a)",
        "backfill, pictures/s",
        "× (a)",
        "caption + tags ÷ caption",
        "same as (a)",
    ]
    life_head = ["", "ready", "first caption", "loaded, MiB", "peak, MiB", "at rest after work, MiB"]
    return [
        f"## {found.size.capitalize()}",
        "",
        *_table(speed_head, speed),
        "",
        *(line for sentence in [*absent, *short] for line in (sentence, "")),
        "“Same as (a)”: answers about small pictures, which every contender sees alike, and answers of the backfill, "
        "where ours may read a JPEG at a reduced scale. In int8 a random network can write something else: how near a "
        "trained one stays is for `florence-daemon quantize` to say.",
        "",
        *_table(life_head, life),
        "",
        "From the start of the process; the files were in the disk's cache. Memory is VmRSS and VmHWM, of which mapped "
        "files are a part.",
        "",
        *_floors(found, plan),
    ]


def _floors(found: SizeResult, plan: Plan) -> list[str]:
    work, rates = found.work, found.usual_rates
    rows = []
    for letter, row in found.rows.items():
        if row.unable:
            continue
        batch = 1 if row.kind.engine == "reference" else max(1, plan.batch)
        alone, batched = usual(row.alone_s), usual(row.per_s)
        floor_s, floor_batched_s = (
            work.alone_s(row.kind.precision, rates),
            work.batched_s(row.kind.precision, rates, batch),
        )
        rows.append(
            [
                _title(letter, row),
                f"{1000 * work.step_gb(row.kind.precision, 1):.0f} MB",
                f"{1000 * work.step_s(row.kind.precision, rates, 1):.1f} ms",
                _seconds(floor_s),
                _times(alone and alone / floor_s),
                _number(1 / floor_batched_s, 3),
                _times(batched and 1 / (batched * floor_batched_s)),
                _seconds(usual(row.vision_s)),
                _seconds(usual(row.text_s)),
            ]
        )
    head = [
        "",
        "a step reads",
        "a step's floor",
        "one picture's floor",
        "× floor",
        "backfill's floor, pictures/s",
        "× floor",
    ]
    return [
        f"The floor: vision {work.vision_gflop:.0f} GFLOP, encoder {work.encoder_gflop:.0f} GFLOP, each of "
        f"{work.steps} steps {work.step_gflop:.2f} GFLOP, over the machine's {rates.matrix_gflop_s:.0f} GFLOP/s of "
        f"matrix products and {rates.memory_gb_s:.1f} GB/s of memory, measured in the same rounds. For int8 the "
        "arithmetic is counted at the same rate, so it can go below that floor.",
        "",
        *_table([*head, "vision took", "text took"], rows),
        "",
    ]


def _aims(result: Result) -> list[str]:
    rows = [
        [aim.what, f"{'≥' if aim.at_least else '≤'} {aim.wanted:g} {aim.unit}", _number(aim.seen, 2), aim.verdict]
        for aim in find_aims(result)
    ]
    return ["## Aims", "", *_table(["aim", "wanted", "seen", ""], rows), ""]


def _machine(result: Result) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    return ["## Machine", "", *(f"- {line}" for line in [*result.machine, versions])]


def _table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _name(row: Row) -> str:
    return f"{row.kind.title}, {row.kind.precision}"


def _title(letter: str, row: Row) -> str:
    return f"({letter}) {_name(row)}"


def _same(row: Row) -> str:
    if not row.checked:
        return _NONE
    text = f"{row.same} of {row.checked}; backfill {row.backfilled_same} of {row.backfilled}"
    return f"**{text}**" if row.same < row.checked and row.kind.precision == "float32" else text


def _number(value: float | None, digits: int) -> str:
    return _NONE if value is None else f"{value:.{digits}f}"


def _times(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2f} ×"


def _seconds(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2f} s"
