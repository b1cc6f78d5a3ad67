"""Compare the ways of running Florence-2, each in a process of its own: `python -m benchmarks.engine`.

(a) transformers' `generate`, one picture at a time, as servers do today; (b) our engine in torch; (c) and (d) in
OpenVINO, float32 and int8. Full-size checkpoints with random weights and all pictures are made in --cache; nothing
comes over the network.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import cattrs

from benchmarks.checkpoints import SIZES
from benchmarks.machine import describe_machine, find_versions
from benchmarks.progress import say
from benchmarks.report import write_chart, write_report
from benchmarks.results import Kind, Plan, Result
from benchmarks.rounds import find_pictures, measure_size

DOCS = Path(__file__).parents[1] / "docs"
CPU = {
    "a": Kind("transformers", "reference", "float32"),
    "b": Kind("ours, torch", "torch", "float32"),
    "c": Kind("ours, OpenVINO", "openvino", "float32"),
    "d": Kind("ours, OpenVINO", "openvino", "int8"),
}
# A server with a GPU runs float16.
GPU = {"a": Kind("transformers", "reference", "float16"), "b": Kind("ours, torch", "torch", "float16")}


def main() -> None:
    """Measure, print, and write where that is asked for."""
    arguments = parse_arguments()
    if arguments.again is not None:
        result = load_result(arguments.again)
    else:
        result = run(_plan(arguments), arguments.sizes, arguments.contenders, arguments.cache)
    name = _name(result.plan)
    notes = Path(__file__).with_name(f"{name}-notes.md")
    report = write_report(result, f"{name}.svg", notes.read_text(encoding="utf-8") if notes.exists() else "")
    print(report)
    if arguments.write:
        (DOCS / f"{name}.md").write_text(report, encoding="utf-8")
        (DOCS / f"{name}.svg").write_text(write_chart(result), encoding="utf-8")


def run(plan: Plan, sizes: list[str], contenders: list[str], cache: Path) -> Result:
    """Measure the sizes one after the other; what is measured is kept in the cache, for --again."""
    known = CPU if plan.device == "cpu" else GPU
    kinds = {letter: known[letter] for letter in contenders if letter in known}
    say("the photographs")
    pictures = find_pictures(plan, cache)
    result = Result(plan, describe_machine(plan.device), find_versions(), [])
    for size in sizes:
        result.sizes.append(measure_size(size, kinds, plan, pictures, cache))
        save_result(result, cache / f"{_name(plan)}.json")
    return result


def save_result(result: Result, file: Path) -> None:
    """Keep a run."""
    file.write_text(json.dumps(asdict(result), indent=1), encoding="utf-8")


def load_result(file: Path) -> Result:
    """Read a run that was kept."""
    return cattrs.structure(json.loads(file.read_text(encoding="utf-8")), Result)


def _name(plan: Plan) -> str:
    return "benchmarks" if plan.device == "cpu" else "benchmarks-gpu"


def _plan(arguments: argparse.Namespace) -> Plan:
    if arguments.quick:
        return Plan(arguments.device, rounds=1, pictures=4, reference_pictures=2, alone=1, batch=arguments.batch)
    pictures, of_a = arguments.pictures, min(arguments.reference_pictures, arguments.pictures)
    return Plan(arguments.device, arguments.rounds, pictures, of_a, batch=arguments.batch)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["base", "large"])
    parser.add_argument("--contenders", nargs="+", choices=list(CPU), default=list(CPU))
    parser.add_argument("--device", default="cpu", help="cpu, or cuda: then (a) and (b) in float16")
    parser.add_argument("--rounds", type=int, default=3, help="medians of them are printed")
    parser.add_argument("--pictures", type=int, default=32, help="of a backfill")
    parser.add_argument("--reference-pictures", type=int, default=32, help="how many of them (a) does")
    parser.add_argument("--batch", type=int, default=8, help="questions side by side in ours; 0 lets it choose")
    parser.add_argument("--quick", action="store_true", help="one round of few pictures: a trial, not a measurement")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md, or -gpu.md, and its chart")
    parser.add_argument("--again", type=Path, metavar="JSON", help="print a run that --cache has kept, measure nothing")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "florence-daemon-benchmarks")
    return parser.parse_args()


if __name__ == "__main__":
    main()
