"""Train the embedded demo model on drawn pictures, or examine it on pictures that it never saw.

    python tools/train_demo_model.py               trains, writes florence_daemon/demo_model/, then examines it
    python tools/train_demo_model.py --evaluate    examines what lies there
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from demo_model.network import write_network
from demo_model.tokenizer import train_tokenizer, write_tokenizer
from demo_model.training import Plan, train

DEMO_MODEL = Path(__file__).resolve().parents[1] / "florence_daemon" / "demo_model"


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(2)
    if not arguments.evaluate:
        train_and_write(arguments.out, Plan(seed=arguments.seed, steps=arguments.steps))


def train_and_write(directory: Path, plan: Plan) -> None:
    started_s, started_cpu_s = time.monotonic(), time.process_time()
    tokenizer = train_tokenizer(plan.seed)
    network = train(tokenizer, plan)
    directory.mkdir(parents=True, exist_ok=True)
    write_tokenizer(tokenizer, directory)
    write_network(network, directory)
    wall_min, cpu_min = (time.monotonic() - started_s) / 60, (time.process_time() - started_cpu_s) / 60
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(f"trained {parameters:,} parameters in {wall_min:.1f} min ({cpu_min:.1f} min of CPU time): {directory}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluate", action="store_true", help="only examine the model that lies in --out")
    parser.add_argument("--out", type=Path, default=DEMO_MODEL, help="the directory of the model")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--steps", type=int, default=4000)
    return parser.parse_args()


if __name__ == "__main__":
    main()
