"""What a way of running Florence-2 offers to the loop that batches: arrays of numpy in, arrays of numpy out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

# How many of a row's most likely tokens a step gives. What is forbidden is taken out of them, and a search with 5 beams
# needs 10: more than these are wanted so seldom that they are fetched then (`Continuations.all_logits`).
LIKELIEST = 32


@dataclass(frozen=True)
class Continuations:
    """The most likely next tokens of each row.

    logits: (R, K) float32, falling. ids: (R, K) int64, the tokens that have them. log_norm: (R,) float32, the logarithm
    of the sum of the exponentials of all the row's logits, so that `logits - log_norm` are log probabilities.
    all_logits: gives rows' whole logits, (n, V) float32, until the next step; `<image>` is never possible: -inf.
    """

    logits: NDArray[np.float32]
    ids: NDArray[np.int64]
    log_norm: NDArray[np.float32]
    all_logits: Callable[[Sequence[int]], NDArray[np.float32]]


class Decoder(Protocol):
    """Writes the answers to several questions at once, a token a step. It begins without questions.

    Each question has a row for every beam; rows lie together, questions in the order in which they joined. Questions
    may be of different ages: what one's rows give does not depend on the others.
    """

    def join(self, features: Any, prompt: Sequence[int], beams: int) -> None:
        """Add a question behind the others: one picture's features and the prompt's ids are read for it."""

    def leave(self, questions: Sequence[int]) -> None:
        """Remove questions, by their places; those behind move up."""

    def step(self, parents: Sequence[int], ids: Sequence[int]) -> Continuations:
        """Let each row r first take over what beam `parents[r]` of its question has written, then read `ids[r]`.

        Both have one entry for every row that there is now; a beam that has written nothing yet is its own parent.
        """


class Backend(Protocol):
    """A loaded network. device: `cpu`, `cuda:0`, `mps`; precision: `float32`, `float16`, `bfloat16` or `int8`.

    picture_batch: how many pictures `see` takes best at once; on a CPU 1, where more only take more memory.
    """

    device: str
    precision: str
    picture_batch: int

    def see(self, pixels: NDArray[np.float32]) -> Sequence[Any]:
        """Run the vision part: (B, 3, S, S), normalised, to B features, in whatever form `Decoder.join` takes them."""

    def new_decoder(self) -> Decoder:
        """Begin with no questions; a backend can have several decoders, which know nothing of each other."""

    def question_bytes(self, beams: int, tokens: int) -> int:
        """Memory that one question takes while it is decoded, when its answer has this many tokens."""
