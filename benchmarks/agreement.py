"""How far other forms say the same as float32 in torch: `python -m benchmarks.agreement`.

The demo model is asked all its prompts about the 500 drawn pictures that `tools/train_demo_model.py --evaluate` uses,
which neither training nor calibration has seen. Their true answers are known, so each form is compared with them too:
agreement with float32 is what can be measured on anybody's pictures, being right is what it stands for.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.progress import say
from florence_daemon.demo_answers import PROMPTS, true_answer
from florence_daemon.demo_pictures import DrawnPicture
from florence_daemon.engine.agreement import Agreement, compare, objections
from florence_daemon.engine.backend import open_backend
from florence_daemon.engine.batching import Batching
from florence_daemon.engine.checkpoint import find, open_checkpoint
from florence_daemon.engine.preprocess import read_picture, to_pixels
from florence_daemon.engine.protocol import Ask, EngineSettings
from florence_daemon.tasks import find_task, parse_answer

TRUTH = "the true answers"
USUAL = "torch float32"
# How the vision part of int8 is made, which otherwise is whatever is faster on the machine; None is float32 throughout.
OTHERS = {"OpenVINO float32": None, "int8, vision float32": "float32", "int8, vision too": "int8"}
HELD_OUT_SEED = 2026  # as in tools/train_demo_model.py
CALIBRATION_SEED = 1
STEP = 50

Results = dict[str, list[Any]]
"""For each prompt, the answers to all pictures."""


def main() -> None:
    """Measure and print, as tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=500, help="held-out pictures to ask about")
    parser.add_argument("--calibrate", type=int, default=100, help="other pictures, to calibrate int8 with")
    arguments = parser.parse_args()
    pictures, truth = draw(arguments.pictures)
    answered = {
        TRUTH: truth,
        USUAL: ask(EngineSettings("demo", device="cpu", engine="torch", precision="float32"), USUAL, pictures),
    }
    for name, vision in OTHERS.items():
        with tempfile.TemporaryDirectory() as state_dir:
            if vision is not None:
                calibrate(Path(state_dir), arguments.calibrate, vision)
            precision = "int8" if vision else "float32"
            settings = EngineSettings("demo", device="cpu", engine="openvino", precision=precision, state_dir=state_dir)
            answered[name] = ask(settings, name, pictures)
    print(f"{len(pictures)} held-out pictures; int8 calibrated with {arguments.calibrate} others")
    for name in OTHERS:
        print(f"\n{name} beside {USUAL}:\n")
        print("\n".join(table(agreements(answered[USUAL], answered[name]))))
    print("\nHow often each form is right:\n")
    print("\n".join(rightness({name: agreements(truth, answered[name]) for name in (USUAL, *OTHERS)})))


def draw(count: int) -> tuple[list[bytes], Results]:
    """The pictures' files, PNG and JPEG as people have them, and the true answers."""
    held_out_picture = _find_held_out_picture()
    files: list[bytes] = []
    truth: Results = {prompt: [] for prompt in PROMPTS}
    for index in range(count):
        picture, encoded = held_out_picture(index, HELD_OUT_SEED)
        files.append(encoded)
        for prompt, answers in truth.items():
            task = find_task(prompt)[0]
            answers.append(parse_answer(task, true_answer(prompt, picture), picture.image.size))
    return files, truth


def calibrate(state_dir: Path, count: int, vision: str) -> None:
    """Make the demo model's int8 form with pictures that are not asked about."""
    from florence_daemon.engine import openvino_export
    from florence_daemon.engine.openvino_form import int8_directory

    checkpoint = open_checkpoint(find("demo"))
    held_out_picture = _find_held_out_picture()
    pictures = (read_picture(held_out_picture(index, CALIBRATION_SEED)[1]) for index in range(count))
    pixels = [to_pixels(picture, checkpoint.layout.image_side_px) for picture in pictures]
    openvino_export.calibrate(checkpoint, pixels, int8_directory(state_dir, checkpoint), say, vision)


def ask(settings: EngineSettings, name: str, pictures: Sequence[bytes]) -> Results:
    """Ask a form all prompts about every picture."""
    backend = open_backend(settings)
    if not isinstance(backend, Batching):
        raise TypeError(f"{settings.engine} answers one picture after the other")
    results: Results = {prompt: [] for prompt in PROMPTS}
    for start in range(0, len(pictures), STEP):
        say(f"{name}: asked about {start} of {len(pictures)} pictures")
        for answers, _ in backend.answer_all(pictures[start : start + STEP], [Ask(prompt) for prompt in PROMPTS]):
            for answer in answers:
                results[answer.prompt].append(answer.result)
    return results


def agreements(one: Results, another: Results) -> list[Agreement]:
    """Compare two forms, or a form and the truth, prompt by prompt."""
    return [compare(prompt, one[prompt], another[prompt]) for prompt in PROMPTS]


def table(compared: Sequence[Agreement]) -> list[str]:
    """The figures in Markdown, and what they would mean for `precision: auto`."""
    lines = ["| prompt | same | edit similarity | worst | tag overlap | box IoU |", "|---|---|---|---|---|---|"]
    for each in compared:
        figures = (each.edit_similarity, each.worst_edit_similarity, each.tag_overlap, each.box_iou)
        cells = ["" if figure is None else f"{figure:.4f}" for figure in figures]
        lines.append(f"| `{each.prompt.strip('<>')}` | {100 * each.same:.1f} % | {' | '.join(cells)} |")
    refused = objections(compared)
    return [*lines, "", "; ".join(refused) if refused else "No objections: it would be proved."]


def rightness(forms: dict[str, list[Agreement]]) -> list[str]:
    """The share of answers that are exactly the true ones; of places, how far they cover the true ones."""
    lines = [f"| prompt | {' | '.join(forms)} |", "|---" * (len(forms) + 1) + "|"]
    for number, prompt in enumerate(PROMPTS):
        found = [of_form[number] for of_form in forms.values()]
        cells = [f"{100 * each.same:.1f} %" if each.box_iou is None else f"IoU {each.box_iou:.3f}" for each in found]
        lines.append(f"| `{prompt.strip('<>')}` | {' | '.join(cells)} |")
    return lines


def _find_held_out_picture() -> Callable[[int, int], tuple[DrawnPicture, bytes]]:
    sys.path.append(str(Path(__file__).parents[1] / "tools"))
    from demo_model.examination import held_out_picture

    return held_out_picture


if __name__ == "__main__":
    main()
