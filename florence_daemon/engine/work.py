"""A request on its way through the engine: its picture, its questions, their answers, the seconds they took."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from florence_daemon.engine.checkpoint import Checkpoint
from florence_daemon.engine.preprocess import Picture
from florence_daemon.engine.protocol import Answer, Ask, Done, EngineSettings, Failed, Progress, Source, Stages
from florence_daemon.engine.search import SearchSettings
from florence_daemon.errors import FlorenceError
from florence_daemon.tasks import Task, parse_answer

log = logging.getLogger(__name__)

Reply = Callable[[Progress], None]
"""Is told how a request goes on."""


@dataclass(eq=False)
class Work:
    """A request and how far it is.

    source: path, bytes or picture; let go when it is read. pixels: (3, S, S) float32, normalised; let go once there are
    `features`. decode_s is the time of the thread that read it; of what it shares with others, a batch of
    vision or a step of the decoder, it is charged an equal part: vision_s, text_s.
    """

    id: int
    source: Source | Picture
    asks: tuple[Ask, ...]
    reply: Reply
    is_urgent: bool = False
    questions: list[Question] = field(default_factory=list)
    pixels: NDArray[np.float32] | None = None
    size_px: tuple[int, int] = (0, 0)
    content: bytes | None = None
    features: Any = None
    decode_s: float = 0.0
    vision_s: float = 0.0
    text_s: float = 0.0
    is_over: bool = False

    def end_when_answered(self) -> None:
        """Reply once every question has its answer."""
        answers = [question.answer for question in self.questions if question.answer is not None]
        if len(answers) == len(self.questions):
            self.is_over = True
            self.reply(Done(self.id, tuple(answers), self.size_px, self.stages, self.content))

    def fail(self, error: Exception) -> None:
        """Reply that there will be no answer."""
        self.is_over = True
        self.reply(failure(self.id, error))

    @property
    def stages(self) -> Stages:
        """Its seconds, as they are told."""
        return Stages(self.decode_s, self.vision_s, self.text_s)


@dataclass(eq=False)
class Question:
    """One thing asked about a picture, written out for the model. prompt_tokens: with those of the picture."""

    work: Work
    task: Task
    prompt: list[int]
    settings: SearchSettings
    prompt_tokens: int
    answer: Answer | None = None

    def take(self, ids: Sequence[int], text: str) -> None:
        """Take what the model wrote as the answer: the ids behind the start token, and their words."""
        result = parse_answer(self.task, text, self.work.size_px)
        tokens = len(ids) - 1
        is_cut = tokens >= self.settings.max_new_tokens
        self.answer = Answer(self.task.token, result, tokens, is_cut, self.prompt_tokens)


def new_question(work: Work, ask: Ask, checkpoint: Checkpoint, settings: EngineSettings) -> Question:
    """Write out what is asked.

    Raises:
        PromptError: it is no task, lacks its text, its text is too long, or it is asked with settings out of range.
    """
    task, prompt = checkpoint.encode_prompt(ask)
    read = checkpoint.layout.image_tokens + len(prompt)
    return Question(work, task, prompt, search_settings(checkpoint, settings, ask), read)


def search_settings(checkpoint: Checkpoint, settings: EngineSettings, ask: Ask) -> SearchSettings:
    """Join what is asked, the settings and the checkpoint's defaults.

    The decoder reads its start token and all new tokens but the last, so the position table holds as many new tokens as
    it has positions: a longer answer is ended there, by the forced end token. Who wants tokens drawn wants one beam.

    Raises:
        PromptError: a value is out of its range.
    """
    defaults = checkpoint.search
    return SearchSettings(
        start_id=defaults.decoder_start_token_id,
        end_id=defaults.eos_token_id,
        num_beams=ask.num_beams or (1 if ask.temperature else settings.num_beams),
        max_new_tokens=min(ask.max_new_tokens or settings.max_new_tokens, checkpoint.layout.max_positions),
        no_repeat_ngram_size=(
            defaults.no_repeat_ngram_size if ask.no_repeat_ngram_size is None else ask.no_repeat_ngram_size
        ),
        early_stopping=defaults.early_stopping,
        length_penalty=defaults.length_penalty,
        forced_first_id=defaults.forced_bos_token_id,
        forced_last_id=defaults.forced_eos_token_id,
        temperature=ask.temperature,
        top_p=ask.top_p,
        seed=ask.seed,
    )


def failure(request_id: int, error: Exception) -> Failed:
    """Say an error to whoever asked; one that nobody foresaw is logged with its traceback."""
    if isinstance(error, FlorenceError):
        return Failed(request_id, type(error).__name__, str(error))
    if is_out_of_memory(error):
        return Failed(
            request_id,
            "EngineError",
            "there was not enough memory for this picture; free some, or set model.num_beams or "
            "model.max_new_tokens lower",
        )
    log.error("a picture could not be answered", exc_info=error)
    return Failed(request_id, "EngineError", f"the model failed on this picture: {error!r}")


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether memory was short; each library has its own way to say so, and most of them only in words."""
    said = f"{type(error).__name__} {error}".lower()
    signs = ("outofmemory", "out of memory", "t allocate memory", "bad_alloc", "bad allocation")
    return isinstance(error, MemoryError) or any(sign in said for sign in signs)


def is_device_lost(error: Exception) -> bool:
    """Tell whether a GPU failed so that nothing works in this process any more, whichever picture comes next."""
    return "CUDA error" in str(error) and not is_out_of_memory(error)
