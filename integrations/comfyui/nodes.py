"""The node: images in; out come captions, or boxes and outlines as JSON."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .batch import ask_all
from .pictures import to_pngs
from .server import LABELS, Answer, Question, Server, default_server

log = logging.getLogger(__name__)

# What a Florence Daemon can be asked; a test holds this to what it says itself.
PROMPTS = [
    "GENERATE_TAGS",
    "CAPTION",
    "DETAILED_CAPTION",
    "MORE_DETAILED_CAPTION",
    "ANALYZE",
    "MIXED_CAPTION",
    "MIXED_CAPTION_PLUS",
    "OCR",
    "OCR_WITH_REGION",
    "OD",
    "DENSE_REGION_CAPTION",
    "REGION_PROPOSAL",
    "CAPTION_TO_PHRASE_GROUNDING",
    "REFERRING_EXPRESSION_SEGMENTATION",
    "REGION_TO_SEGMENTATION",
    "OPEN_VOCABULARY_DETECTION",
    "REGION_TO_CATEGORY",
    "REGION_TO_DESCRIPTION",
    "REGION_TO_OCR",
]


class FlorenceDaemonCaption:
    """Has a Florence Daemon caption images; ComfyUI makes it and calls `caption`."""

    CATEGORY = "image"
    DESCRIPTION = "Captions, tags, text and places of images, from a Florence Daemon."
    FUNCTION = "caption"
    RETURN_TYPES = ("STRING", "STRING")
    RETURN_NAMES = ("caption", "json")
    # One of each for every image of the batch.
    OUTPUT_IS_LIST = (True, True)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Say what the node takes."""
        return {
            "required": {
                "image": ("IMAGE",),
                "prompt": (PROMPTS, {"default": "MORE_DETAILED_CAPTION"}),
                "server": ("STRING", {"default": default_server(), "tooltip": "Where the Florence Daemon answers."}),
            },
            "optional": {
                "text": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "tooltip": "For prompts that take text or a region: what OPEN_VOCABULARY_DETECTION looks for.",
                    },
                ),
                "keep_alive": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "How long the model stays loaded afterwards: 5m, 30 (seconds), -1 for ever, 0 frees "
                        "its memory at once. Empty leaves that to the server.",
                    },
                ),
            },
        }

    def caption(
        self, image: Any, prompt: str, server: str, text: str = "", keep_alive: str = ""
    ) -> tuple[list[str], list[str]]:
        """Ask about each image of a batch. image: (B, H, W, C) float, 0 to 1; C is 1, 3 or 4.

        Raises: CaptionError, which says why there is no answer; ComfyUI shows it.
        """
        pngs, asked, shown = to_pngs(image), Server(server), _progress(len(image))
        questions = [Question(png, prompt, text.strip()) for png in pngs]
        # Once the others are answered: it would unload the model after each, to load it for the next.
        last = replace(questions.pop(), keep_alive=keep_alive.strip())
        answers = []
        for group in (questions, [last]):
            for answer in ask_all(asked.ask, group, _interruption()):
                answers.append(answer)
                shown()
        for number, answer in enumerate(answers, 1):
            if answer.flaw:
                log.warning(
                    "the caption of image %d is not fit to be one (%s): %.200r", number, answer.flaw, answer.result
                )
        return [_text(answer) for answer in answers], [json.dumps(answer.result) for answer in answers]


def _text(answer: Answer) -> str:
    """An answer as text: of places, what is there."""
    if isinstance(answer.result, str):
        return answer.result
    labels = [label for name in LABELS for label in answer.result.get(name, [])]
    return ", ".join(dict.fromkeys(str(label) for label in labels if label))


def _interruption() -> Callable[[], None]:
    """What raises when a person has pressed ComfyUI's Cancel."""
    try:
        from comfy.model_management import throw_exception_if_processing_interrupted
    except ImportError:
        return lambda: None
    return throw_exception_if_processing_interrupted


def _progress(total: int) -> Callable[[], None]:
    """What moves ComfyUI's bar on by one image."""
    try:
        from comfy.utils import ProgressBar
    except ImportError:
        return lambda: None
    bar = ProgressBar(total)
    return lambda: bar.update(1)


NODE_CLASS_MAPPINGS = {"FlorenceDaemonCaption": FlorenceDaemonCaption}
NODE_DISPLAY_NAME_MAPPINGS = {"FlorenceDaemonCaption": "Caption (Florence Daemon)"}
