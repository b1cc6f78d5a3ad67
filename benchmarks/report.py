"""A run of the engine's benchmark as Markdown: the machine, a table a size, the floors, the aims."""

from __future__ import annotations

from benchmarks.aims import find_aims
from benchmarks.chart import Bar, draw_chart
from benchmarks.results import Plan, Result, SizeResult
from benchmarks.tables import LIFE, SPEED, contender_table, floor_columns, in_number, table, title


def write_report(result: Result, chart: str, notes: str = "") -> str:
    """Write the page. chart: the picture's file name beside it. notes: what a person has to say about the aims."""
    parts = [
        *_introduction(result, chart),
        *(line for found in result.sizes for line in _size(found, result.plan)),
        *_aims(result),
        *([notes.strip(), ""] if notes.strip() else []),
        *_machine(result),
    ]
    return "\n".join(parts) + "\n"


def write_chart(result: Result) -> str:
    """Draw the ratios to transformers of all sizes."""
    bars = [
        Bar(f"{found.size}: {title(letter, row)}", found.faster_backfill(letter), found.faster_alone(letter))
        for found in result.sizes
        for letter, row in found.rows.items()
        if not row.unable
    ]
    return draw_chart("Times as fast as transformers' generate, same run, median of the rounds", bars)


def _introduction(result: Result, chart: str) -> list[str]:
    plan = result.plan
    device = f" --device {plan.device}" if plan.device != "cpu" else ""
    side_by_side = f"up to {plan.batch} questions" if plan.batch else "as many questions as fit"
    return [
        "# Benchmarks",
        "",
        f"Written by `python -m benchmarks.engine{device} --write`.",
        "",
        f"![How many times as fast as transformers]({chart})",
        "",
        "Florence-2 in its published sizes with random weights (float16 on disk, as published), "
        f"{plan.new_tokens} new tokens, 3 beams, no repeated 3-grams. Photographs of 4000 × 3000 pixels "
        "(scikit-image's, cropped, JPEG); every time is from the file to the text. Each contender is a process of its "
        f"own; they work in turn, in one run of {_count(plan.rounds, 'round')}. Ratios are to (a) within each round; "
        f"the median round is printed. A backfill is {plan.pictures} pictures, ours with {side_by_side} side by side."
        + _fewer(plan),
        "",
        "(a) is `Florence2ForConditionalGeneration.from_pretrained` and `generate`, one picture at a time, as servers "
        "do today; what Florence2Processor does is done by Pillow and the checkpoint's tokenizer.",
        "",
    ]


def _fewer(plan: Plan) -> str:
    if plan.reference_pictures >= plan.pictures:
        return ""
    return (
        f" Transformers did {plan.reference_pictures} of the {plan.pictures}: it takes them one by one, so its pace "
        "does not depend on how many there are."
    )


def _size(found: SizeResult, plan: Plan) -> list[str]:
    return [
        f"## {found.size.capitalize()}",
        "",
        *contender_table(found, SPEED),
        "",
        *_faults(found, plan),
        "“Same as (a)”: answers about small pictures, which every contender sees alike, and answers of the backfill, "
        "where ours reads large JPEGs at a reduced scale: a random network turns the smallest difference into other "
        "words. So does int8; how near a trained network stays is for `florence-daemon quantize` to say. “Backfill as "
        "alone”: whether the same contender says the same of a picture among others.",
        "",
        *contender_table(found, LIFE),
        "",
        "From the start of the process; the files were in the disk's cache. Memory is VmRSS and VmHWM, of which mapped "
        "files are a part.",
        "",
        *_floors(found, plan),
    ]


def _faults(found: SizeResult, plan: Plan) -> list[str]:
    lines = []
    for letter, row in found.rows.items():
        if row.unable:
            lines += [f"{title(letter, row)} could not take part: {row.unable}", ""]
        if row.short:
            lines += [f"**{title(letter, row)} gave {row.short} answers not of {plan.new_tokens} tokens.**", ""]
    return lines


def _floors(found: SizeResult, plan: Plan) -> list[str]:
    work, rates = found.work, found.usual_rates
    return [
        f"The floor: vision {work.vision_gflop:.0f} GFLOP, encoder {work.encoder_gflop:.0f} GFLOP, each of "
        f"{work.steps} steps {work.step_gflop:.2f} GFLOP, over the machine's {rates.matrix_gflop_s:.0f} GFLOP/s of "
        f"matrix products and {rates.memory_gb_s:.1f} GB/s of memory, measured in the same rounds. For int8 the "
        "arithmetic is counted at the same rate, so it can go below that floor.",
        "",
        *contender_table(found, floor_columns(plan)),
        "",
    ]


def _aims(result: Result) -> list[str]:
    rows = [
        [aim.what, f"{'≥' if aim.at_least else '≤'} {aim.wanted:g} {aim.unit}", in_number(aim.seen, 2), aim.verdict]
        for aim in find_aims(result)
    ]
    return ["## Aims", "", *table(["aim", "wanted", "seen", ""], rows), ""]


def _machine(result: Result) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    return ["## Machine", "", *(f"- {line}" for line in [*result.machine, versions])]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
