"""The search for the best answer: greedy or beams, with what Florence-2 forces and forbids.

Each answer has a search of its own, which is told the best continuations of a step and decides in plain Python; what
touches the whole vocabulary is done for all rows at once. Gives the same sequences as transformers' `generate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

NEVER = float("-inf")
# The score of a beam that does not exist yet: any real one is better.
_NO_BEAM = -1.0e9


@dataclass(frozen=True)
class SearchSettings:
    """How one answer is searched. Lengths count the tokens behind the start token.

    early_stopping: end as soon as there are as many finished answers as beams. length_penalty: a finished answer of
    score s and length n counts s / n ** length_penalty.
    """

    start_id: int
    end_id: int
    num_beams: int = 3
    max_new_tokens: int = 1024
    min_new_tokens: int = 0
    no_repeat_ngram_size: int = 3
    early_stopping: bool = True
    length_penalty: float = 1.0
    forced_first_id: int | None = None
    forced_last_id: int | None = None

    @property
    def candidates(self) -> int:
        """Continuations a step must offer: if every beam's best is the end, as many are left that go on."""
        return 2 * self.num_beams if self.num_beams > 1 else 1


@dataclass
class Beam:
    """An answer in the making. score: the sum of its tokens' log probabilities; ids: begin with the start token."""

    score: float
    ids: list[int]


@dataclass
class Search:
    """The search for one answer. `beams` are to be continued, one decoded row each, until `is_done`."""

    settings: SearchSettings
    beams: list[Beam] = field(default_factory=list)
    finished: list[Beam] = field(default_factory=list)
    is_done: bool = False

    def __post_init__(self) -> None:
        start = self.settings.start_id
        scores = [0.0] + [_NO_BEAM] * (self.settings.num_beams - 1)
        self.beams = [Beam(score, [start]) for score in scores]

    @property
    def answer(self) -> list[int]:
        """The best answer's ids, the start token first."""
        return max(self.finished, key=lambda beam: beam.score).ids if self.finished else self.beams[0].ids

    def advance(self, scores: Sequence[float], rows: Sequence[int], ids: Sequence[int]) -> list[int]:
        """Take a step's best continuations, best first: beam `rows[i]` by token `ids[i]` has `scores[i]`.

        Returns, for each beam that goes on, the beam that it continues.
        """
        settings = self.settings
        length = len(self.beams[0].ids)  # of the continuations, start token not counted
        ends = [token == settings.end_id or length >= settings.max_new_tokens for token in ids]
        if settings.num_beams == 1:
            self.beams = [Beam(scores[0], [*self.beams[0].ids, ids[0]])]
            self.is_done = ends[0]
            return [0]
        self._finish(scores, rows, ids, ends, length)
        going = [index for index, is_end in enumerate(ends) if not is_end][: settings.num_beams]
        if len(going) < settings.num_beams:
            self.is_done = True
            return list(range(settings.num_beams))
        parents = [rows[index] for index in going]
        self.beams = [Beam(scores[index], [*self.beams[rows[index]].ids, ids[index]]) for index in going]
        self.is_done = self._cannot_improve(length)
        return parents

    def _finish(
        self, scores: Sequence[float], rows: Sequence[int], ids: Sequence[int], ends: Sequence[bool], length: int
    ) -> None:
        """Keep the best finished answers. Only a continuation among the best `num_beams` may finish."""
        if self._is_full and self.settings.early_stopping:
            return
        penalty = length**self.settings.length_penalty
        for index in range(self.settings.num_beams):
            if ends[index] and scores[index] > NEVER:
                self.finished.append(Beam(scores[index] / penalty, [*self.beams[rows[index]].ids, ids[index]]))
        self.finished.sort(key=lambda beam: -beam.score)
        del self.finished[self.settings.num_beams :]

    @property
    def _is_full(self) -> bool:
        return len(self.finished) == self.settings.num_beams

    def _cannot_improve(self, length: int) -> bool:
        if not self._is_full:
            return False
        if self.settings.early_stopping:
            return True
        return self.beams[0].score / length**self.settings.length_penalty <= self.finished[-1].score


def forbid(scores: Tensor, written: Tensor, settings: SearchSettings) -> Tensor:
    """Take out what must not come next, and all but what must.

    scores: (R, V). written: (R, T), the start token first.
    """
    length = written.shape[1]  # of the continuation, start token not counted
    if settings.no_repeat_ngram_size:
        scores = forbid_repeated(scores, written, settings.no_repeat_ngram_size)
    if length <= settings.min_new_tokens:
        scores[:, settings.end_id] = NEVER
    if length == settings.max_new_tokens and settings.forced_last_id is not None:
        return force(scores, settings.forced_last_id)
    if length == 1 and settings.forced_first_id is not None:
        return force(scores, settings.forced_first_id)
    return scores


def force(scores: Tensor, token_id: int) -> Tensor:
    """Leave one token, at the score 0."""
    forced = torch.full_like(scores, NEVER)
    forced[:, token_id] = 0.0
    return forced


def forbid_repeated(scores: Tensor, written: Tensor, size: int) -> Tensor:
    """Take out every token that would end an n-gram of this size which the row has already."""
    if written.shape[1] < size:
        return scores
    ngrams = written.unfold(1, size, 1)  # (R, count, size)
    tail = written[:, None, written.shape[1] - size + 1 :]
    repeats = (ngrams[..., :-1] == tail).all(dim=-1)
    ban = torch.where(repeats, NEVER, float("inf")).to(scores.dtype)
    return scores.scatter_reduce(1, ngrams[..., -1], ban, "amin", include_self=True)


def advance_all(logits: Tensor, searches: Sequence[Search]) -> list[int]:
    """Let each search take a step. logits: (R, V), the rows of each search's beams together.

    All searches are at the same length and have the same settings. Returns the rows that those go on from which are not
    done then.
    """
    beams = searches[0].settings.num_beams
    order: list[int] = []
    scores, parents, ids = _best_continuations(logits, searches)
    for number, search in enumerate(searches):
        going = search.advance(scores[number], parents[number], ids[number])
        if not search.is_done:
            order += [number * beams + parent for parent in going]
    return order


def _best_continuations(
    logits: Tensor, searches: Sequence[Search]
) -> tuple[list[list[float]], list[list[int]], list[list[int]]]:
    """Find each search's best continuations: their scores, the beams they continue, their tokens."""
    settings = searches[0].settings
    written = torch.tensor([beam.ids for search in searches for beam in search.beams], device=logits.device)
    logits = logits.float()
    if settings.num_beams == 1:
        best, token = forbid(logits, written, settings).max(dim=-1, keepdim=True)
        return best.tolist(), [[0]] * len(searches), token.tolist()
    before = torch.tensor([[beam.score] for search in searches for beam in search.beams], device=logits.device)
    scores = forbid(logits.log_softmax(dim=-1), written, settings) + before
    entries = scores.shape[1]
    best, places = scores.view(len(searches), -1).topk(settings.candidates)
    return best.tolist(), (places // entries).tolist(), (places % entries).tolist()
