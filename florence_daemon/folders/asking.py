"""What must be asked to fill an image's outputs, each question once, and which answers are whose."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import TypeVar

from florence_daemon.config_output import OutputConfig
from florence_daemon.engine.protocol import Ask

T = TypeVar("T")


def asks_of(outputs: Collection[OutputConfig]) -> tuple[Ask, ...]:
    """What must be asked to fill these outputs: what several want is asked once."""
    return tuple(dict.fromkeys(ask for output in outputs for ask in asks_of_one(output)))


@lru_cache(maxsize=1024)
def asks_of_one(output: OutputConfig) -> tuple[Ask, ...]:
    """What must be asked to fill one output, in the order of its prompts."""
    return tuple(Ask(token, text, output.num_beams, output.max_new_tokens) for token, text in output.asked)


def answers_by_output(
    outputs: Collection[OutputConfig], answers: Sequence[T]
) -> list[tuple[OutputConfig, tuple[T, ...]]]:
    """Give each output its own of the answers to `asks_of(outputs)`, in the order of its prompts.

    Raises: ValueError when there is not one answer to each question.
    """
    answer_to = dict(zip(asks_of(outputs), answers, strict=True))
    return [(output, tuple(answer_to[ask] for ask in asks_of_one(output))) for output in outputs]
