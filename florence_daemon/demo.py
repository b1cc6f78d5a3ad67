"""The demo: the daemon with the embedded model, on pictures that it draws for itself."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

from florence_daemon.config import Config
from florence_daemon.daemon import Daemon, wait_and_stop
from florence_daemon.demo_chance import draw_picture
from florence_daemon.engine.protocol import Done
from florence_daemon.job_log import describe
from florence_daemon.queue import Job
from florence_daemon.signals import StopSignal

SAMPLES = 6


def serve_demo(config: Config, directory: Path) -> int:
    """Draw samples into `directory`, caption whatever lands there, print it; until stopped. Returns the exit code."""
    directory.mkdir(parents=True, exist_ok=True)
    daemon = Daemon(config, on_done=print_answers)
    signals = StopSignal()
    daemon.start()
    print(f"Watching {directory.absolute()}: drop pictures of coloured shapes there. Ctrl-C ends the demo.")
    print("The first caption takes a few seconds: the engine starts when there is work.\n", flush=True)
    names = draw_samples(directory, SAMPLES)
    print_address(daemon.server.address, directory / names[0])
    return wait_and_stop(daemon, signals)


def draw_samples(directory: Path, count: int) -> list[str]:
    """Draw `count` new pictures, JPEG and PNG in turn; nothing that is there is touched. Returns their names."""
    chance = random.Random(time.time_ns())  # noqa: S311 - which shapes to draw is no secret
    names: list[str] = []
    number = 0
    while len(names) < count:
        number += 1
        name = f"sample-{number}.{'jpg' if number % 2 else 'png'}"
        if (directory / name).exists():
            continue
        draw_picture(chance).image.save(directory / name, quality=92)
        names.append(name)
    return names


def print_answers(job: Job, done: Done) -> None:
    """Show one captioned picture and what was said of it."""
    print(describe(job))
    for answer in done.answers:
        print(f"    {answer.prompt:<24} {answer.result}")
    sys.stdout.flush()


def print_address(address: str, picture: Path) -> None:
    """Show how a program asks."""
    print(f"Programs ask at {address}, for example:")
    print(f"    curl -F image=@{picture} -F prompt=CAPTION {address}/process_image\n", flush=True)
