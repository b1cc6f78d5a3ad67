"""Compare our engine with transformers' on one checkpoint: `python -m benchmarks.engine [--model M]`.

Both run in this process, turn by turn, on the same pictures; what counts is the median of the ratios. The answers are
compared too. Full-size checkpoints, batches and other backends are still to come.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

from florence_daemon.demo_pictures import draw_picture, encode_picture
from florence_daemon.engine.backend import Backend, open_backend
from florence_daemon.engine.preprocess import Picture, read_picture
from florence_daemon.engine.protocol import Answer, Ask, EngineSettings

CONTENDERS = ("transformers", "torch")
WORK = {
    "caption": (Ask("<MORE_DETAILED_CAPTION>", max_new_tokens=64),),
    "caption and tags": (Ask("<MORE_DETAILED_CAPTION>", max_new_tokens=64), Ask("<GENERATE_TAGS>", max_new_tokens=64)),
}


def open_contender(name: str, model: str) -> tuple[Backend, float]:
    """The backend, and the seconds until it was ready."""
    started_s = time.perf_counter()
    backend = open_backend(EngineSettings(model, device="cpu", engine=name, offline=True))
    return backend, time.perf_counter() - started_s


def ask(backend: Backend, picture: Picture, asks: tuple[Ask, ...]) -> tuple[list[Answer], float]:
    """The answers, and the seconds they took."""
    started_s = time.perf_counter()
    answers, _ = backend.answer(picture, asks)
    return answers, time.perf_counter() - started_s


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="demo", help="a local directory, a Hub id in the cache, or demo")
    parser.add_argument("--pictures", type=int, default=20, help="pictures per row; medians are printed")
    arguments = parser.parse_args()
    backends = {}
    for name in reversed(CONTENDERS):  # ours first: it must not profit from what transformers has imported
        backends[name], ready_s = open_contender(name, arguments.model)
        print(f"{name}: ready in {ready_s:.1f} s")
    chance = random.Random(1)
    encoded = [encode_picture(draw_picture(chance, (640, 480)).image, "JPEG") for _ in range(arguments.pictures)]
    pictures = [read_picture(content) for content in encoded]
    for title, asks in WORK.items():
        ratios, ours_s, same = [], [], 0
        for picture in pictures:
            found = {name: ask(backend, picture, asks) for name, backend in backends.items()}
            same += found["torch"][0] == found["transformers"][0]
            ratios.append(found["transformers"][1] / found["torch"][1])
            ours_s.append(found["torch"][1])
        print(
            f"{title}: ours {1000 * statistics.median(ours_s):.0f} ms, {statistics.median(ratios):.2f} × as fast as "
            f"transformers; {same} of {len(pictures)} answers the same"
        )


if __name__ == "__main__":
    main()
