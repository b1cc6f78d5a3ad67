"""Train the embedded demo model on drawn pictures, or examine it on pictures that it never saw.

Without an option it trains and writes florence_daemon/demo_model/; with --evaluate it examines what lies there.
"""

from __future__ import annotations

import argparse
import os
import time
from functools import partial
from pathlib import Path

from demo_model.examination import Mark, describe, examine
from demo_model.network import write_network
from demo_model.tokenizer import train_tokenizer, write_tokenizer
from demo_model.training import Plan, train

DEMO_MODEL = Path(__file__).resolve().parents[1] / "florence_daemon" / "demo_model"


def main() -> None:
    arguments = parse_arguments()
    if arguments.evaluate:
        evaluate(arguments.out, arguments.pictures, arguments.seed, arguments.show_wrong)
    else:
        train_and_write(arguments.out, Plan(seed=arguments.seed, steps=arguments.steps))


def train_and_write(directory: Path, plan: Plan) -> None:
    started_s = time.monotonic()
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(plan.seed)
    write_tokenizer(tokenizer, directory)
    train(tokenizer, plan, partial(write_network, directory=directory))
    cpu = os.times()
    cpu_s = cpu.user + cpu.system + cpu.children_user + cpu.children_system
    print(f"trained in {(time.monotonic() - started_s) / 60:.1f} min, {cpu_s / 60:.1f} min of CPU time")
    print(f"written to {directory}; examine it with --evaluate")


def evaluate(directory: Path, count: int, seed: int, is_wrong_shown: bool) -> None:
    started_s = time.monotonic()
    marks: list[Mark] = []
    for number, of_one in enumerate(examine(directory, count, seed), start=1):
        marks += of_one
        if number % 50 == 0:
            print(f"asked about {number} of {count} pictures, {time.monotonic() - started_s:.0f} s", flush=True)
    print(
        f"{count} held-out pictures of 64 to 4000 pixels (seed {seed}), PNG and JPEG, through the program's own engine:"
    )
    print("\n".join(describe(marks)))
    for mark in marks if is_wrong_shown else ():
        if mark.right < mark.whole:
            print(f"{mark.prompt} {mark.size_px}\n  says  {mark.answer}\n  truth {mark.truth}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluate", action="store_true", help="only examine the model that lies in --out")
    parser.add_argument("--out", type=Path, default=DEMO_MODEL, help="the directory of the model")
    parser.add_argument("--seed", type=int, default=2026, help="of the training and of the held-out pictures")
    parser.add_argument("--steps", type=int, default=2500, help="of the training")
    parser.add_argument("--pictures", type=int, default=500, help="how many held-out pictures to ask about")
    parser.add_argument("--show-wrong", action="store_true", help="list every wrong answer beside the true one")
    return parser.parse_args()


if __name__ == "__main__":
    main()
