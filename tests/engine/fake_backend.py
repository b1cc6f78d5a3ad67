"""A network without weights: what it writes about a picture follows from its colour and the prompt alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from florence_daemon.engine.checkpoint import DEMO_DIRECTORY, open_checkpoint
from florence_daemon.engine.decoder import LIKELIEST, Continuations

CHECKPOINT = open_checkpoint(DEMO_DIRECTORY)
WORDS = 500  # the tokens that it writes, from FIRST_WORD on
FIRST_WORD = 300


class FakeBackend:
    """Never ends an answer of itself, so that `max_new_tokens` says how many steps a question takes.

    events: `see 2` for two pictures, `step 3` for three questions. on_step: called with the colours in the decoder,
    on_see with those to be seen; they may raise.
    """

    device = "cpu"
    precision = "float32"

    def __init__(self, picture_batch: int = 1) -> None:
        self.picture_batch = picture_batch
        self.events: list[str] = []
        self.on_see: Callable[[list[int]], None] = lambda colours: None
        self.on_step: Callable[[list[int]], None] = lambda colours: None

    def see(self, pixels: NDArray[np.float32]) -> Sequence[Any]:
        red = pixels[:, 0].mean(axis=(1, 2)) * 0.229 + 0.485
        colours = [round(255 * float(value)) for value in red]
        self.on_see(colours)
        self.events.append(f"see {len(colours)}")
        return colours

    def new_decoder(self) -> FakeDecoder:
        return FakeDecoder(self)

    def question_bytes(self, beams: int, tokens: int) -> int:
        return beams * tokens


@dataclass
class Row:
    """What a beam has written, as a sum that tells whether it is in order."""

    colour: int
    prompt: int
    length: int = 0

    def next_ids(self) -> NDArray[np.int64]:
        first = 7 * self.colour + 13 * self.prompt + 3 * self.length
        return FIRST_WORD + (first + 5 * np.arange(LIKELIEST)) % WORDS


@dataclass
class FakeDecoder:
    backend: FakeBackend
    questions: list[list[Row]] = field(default_factory=list)

    def join(self, features: Any, prompt: Sequence[int], beams: int) -> None:
        self.questions.append([Row(features, sum(prompt)) for _ in range(beams)])

    def leave(self, questions: Sequence[int]) -> None:
        self.questions = [rows for place, rows in enumerate(self.questions) if place not in questions]

    def step(self, parents: Sequence[int], ids: Sequence[int]) -> Continuations:
        self.backend.on_step([rows[0].colour for rows in self.questions])
        self.backend.events.append(f"step {len(self.questions)}")
        rows = [row for question in self.questions for row in question]
        assert len(parents) == len(ids) == len(rows)
        for row in rows:
            row.length += 1
        best = np.stack([row.next_ids() for row in rows])
        logits = np.tile(np.linspace(8, 1, LIKELIEST, dtype=np.float32), (len(rows), 1))

        def all_logits(wanted: Sequence[int]) -> NDArray[np.float32]:
            whole = np.full((len(wanted), CHECKPOINT.layout.vocab_size), -9.0, np.float32)
            np.put_along_axis(whole, best[list(wanted)], logits[list(wanted)], axis=1)
            return whole

        return Continuations(logits, best, np.log(np.exp(logits).sum(axis=1)), all_logits)
