"""The search for one answer: greedy, beams or sampling, with what Florence-2 forces and forbids.

Gives the same sequences as transformers' `generate`. Searches know nothing of each other: a batch of them can be of any
ages and settings. A step is decided among its few likeliest tokens; the whole vocabulary is looked at only where those
do not suffice, so that no result depends on how many they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from florence_daemon.engine.decoder import Continuations
from florence_daemon.errors import EngineError, PromptError

NEVER = float("-inf")
# The score of a beam that does not exist yet: any real one is better.
_NO_BEAM = -1.0e9


@dataclass(frozen=True)
class SearchSettings:
    """How one answer is searched. Lengths count the tokens behind the start token.

    early_stopping: end as soon as there are as many finished answers as beams. length_penalty: a finished answer of
    score s and length n counts s / n ** length_penalty. temperature: 0 takes the likeliest, above it tokens are drawn;
    below 1 likely ones more often than the network says. top_p: draw among the fewest tokens that have this probability
    together. seed: the same gives the same draws; None, others each time.

    Raises:
        PromptError: a value is out of its range, or there is a temperature together with several beams.
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
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.num_beams < 1:
            raise PromptError(f"num_beams is {self.num_beams}: at least 1 is needed")
        if not 0 <= self.temperature < float("inf"):
            raise PromptError(f"temperature is {self.temperature}: 0, or a number above it")
        if not 0 < self.top_p <= 1:
            raise PromptError(f"top_p is {self.top_p}: above 0, and 1 at most")
        if self.is_sampling and self.num_beams > 1:
            raise PromptError(
                f"temperature {self.temperature} with num_beams {self.num_beams}: drawing needs num_beams 1"
            )

    @property
    def is_sampling(self) -> bool:
        """Whether tokens are drawn."""
        return self.temperature > 0

    @property
    def candidates(self) -> int:
        """Continuations a step must offer: if every beam's best is the end, as many are left that go on."""
        return 2 * self.num_beams if self.num_beams > 1 else 1

    def forced_id(self, length: int) -> int | None:
        """The token that an answer must have at this length, if one must."""
        if length == self.max_new_tokens and self.forced_last_id is not None:
            return self.forced_last_id
        return self.forced_first_id if length == 1 else None


@dataclass
class Beam:
    """An answer in the making. score: the sum of its tokens' log probabilities; ids: begin with the start token."""

    score: float
    ids: list[int]


class Step(NamedTuple):
    """A possible next step: beam number `parent` goes on with `token`; score: that of the beam with it."""

    score: float
    parent: int
    token: int


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
        self._chance = np.random.default_rng(self.settings.seed)

    @property
    def last_ids(self) -> list[int]:
        """What each beam's row reads next."""
        return [beam.ids[-1] for beam in self.beams]

    @property
    def answer(self) -> list[int]:
        """The best answer's ids, the start token first."""
        return max(self.finished, key=lambda beam: beam.score).ids if self.finished else self.beams[0].ids

    def advance(self, offers: Continuations, rows: range) -> list[int]:
        """Take a step. rows: those of a batch's offers that belong to this search's beams.

        Returns, for each beam that goes on, the beam that it continues.

        Raises:
            EngineError: the network gave no numbers.
        """
        steps = self._best_steps(offers, rows)
        if self.settings.num_beams > 1:
            return self._advance_beams(steps)
        if not steps:  # everything is forbidden
            self.is_done = True
            return [0]
        self.is_done = self._is_end(steps[0])
        self.beams = [self._follow(steps[0])]
        return [0]

    def _advance_beams(self, steps: list[Step]) -> list[int]:
        count = self.settings.num_beams
        length = len(self.beams[0].ids)  # of the continuations, start token not counted
        self._finish(steps[:count], length)
        going = [step for step in steps if not self._is_end(step)][:count]
        if len(going) < count:
            self.is_done = True
            return list(range(count))
        self.beams = [self._follow(step) for step in going]
        self.is_done = self._cannot_improve(length)
        return [step.parent for step in going]

    def _follow(self, step: Step) -> Beam:
        return Beam(step.score, [*self.beams[step.parent].ids, step.token])

    def _is_end(self, step: Step) -> bool:
        return step.token == self.settings.end_id or len(self.beams[step.parent].ids) >= self.settings.max_new_tokens

    def _finish(self, steps: list[Step], length: int) -> None:
        """Keep the best finished answers. Only a continuation among the best `num_beams` may finish."""
        if self._is_full and self.settings.early_stopping:
            return
        penalty = length**self.settings.length_penalty
        ended = [self._follow(step) for step in steps if self._is_end(step)]
        self.finished += [Beam(beam.score / penalty, beam.ids) for beam in ended]
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

    def _best_steps(self, offers: Continuations, rows: range) -> list[Step]:
        """Find the best continuations of all beams, best first; those that are possible, `candidates` at most."""
        forced = self.settings.forced_id(len(self.beams[0].ids))
        if forced is not None:  # whatever the network says of it
            steps = [Step(beam.score, number, forced) for number, beam in enumerate(self.beams)]
            return sorted(steps, key=lambda step: -step.score)
        log_norm = offers.log_norm[rows.start : rows.stop]
        if not np.isfinite(log_norm).all():
            raise EngineError("The model gave no numbers (NaN): set model.precision to float32, or bfloat16 on a GPU")
        forbidden = [self._forbidden(beam.ids) for beam in self.beams]
        if self.settings.is_sampling:
            return self._draw(self._all_logits(offers, rows, forbidden)[0], log_norm[0])
        logits, ids = offers.logits[rows.start : rows.stop].copy(), offers.ids[rows.start : rows.stop]
        for number, tokens in enumerate(forbidden):
            if tokens:
                logits[number, np.isin(ids[number], list(tokens))] = NEVER
        # The last one can have equals that were left out, of which one of lower id would go before it.
        last = offers.logits[rows.start : rows.stop, -1:]
        if ((logits > last).sum(axis=1) < self.settings.candidates).any():
            logits = self._all_logits(offers, rows, forbidden)
            ids = np.broadcast_to(np.arange(logits.shape[1]), logits.shape)
        return self._rank(logits, ids, log_norm)

    def _rank(self, logits: NDArray[np.float32], ids: NDArray[np.int64], log_norm: NDArray[np.float32]) -> list[Step]:
        """Sort the continuations by the scores of their beams; the same scores by beam and token, as torch's topk."""
        if self.settings.num_beams == 1:
            scores = logits  # their differences are exact; behind the subtraction of a large number they may not be
        else:
            scores = logits - log_norm[:, None] + np.array([[beam.score] for beam in self.beams], np.float32)
        count = min(self.settings.candidates, scores.size)
        least = np.partition(scores, scores.size - count, axis=None)[scores.size - count]
        parents, places = np.nonzero((scores >= least) & (scores > NEVER))
        tokens = ids[parents, places]
        order = np.lexsort((tokens, parents, -scores[parents, places]))[:count]
        if self.settings.num_beams == 1:
            scores = scores - log_norm[:, None] + np.float32(self.beams[0].score)
        return [
            Step(float(scores[parents[at], places[at]]), int(parents[at]), int(tokens[at])) for at in order.tolist()
        ]

    def _draw(self, logits: NDArray[np.float32], log_norm: np.float32) -> list[Step]:
        chances = token_chances(logits, self.settings.temperature, self.settings.top_p)
        if chances is None:
            return []
        sums = np.cumsum(chances)
        token = int(np.searchsorted(sums, self._chance.random() * sums[-1], side="right"))
        return [Step(self.beams[0].score + float(logits[token] - log_norm), 0, token)]

    def _forbidden(self, ids: list[int]) -> set[int]:
        """What must not come behind these ids: the end if it is too early, and what would repeat an n-gram."""
        size = self.settings.no_repeat_ngram_size
        found = repeating_ids(ids, size) if size else set()
        return found | {self.settings.end_id} if len(ids) <= self.settings.min_new_tokens else found

    @staticmethod
    def _all_logits(offers: Continuations, rows: range, forbidden: list[set[int]]) -> NDArray[np.float32]:
        logits = offers.all_logits(rows).copy()
        for number, tokens in enumerate(forbidden):
            logits[number, list(tokens)] = NEVER
        return logits


def repeating_ids(ids: list[int], size: int) -> set[int]:
    """Find every token that would end an n-gram of this size which the ids have already.

    repeating_ids([5, 6, 7, 5, 6], 3) == {7}
    """
    tail = ids[len(ids) - size + 1 :]
    return {ids[at + size - 1] for at in range(len(ids) - size + 1) if ids[at : at + size - 1] == tail}


def token_chances(logits: NDArray[np.float32], temperature: float, top_p: float) -> NDArray[np.float64] | None:
    """Each token's probability of being drawn, (V,); None when every token is forbidden (-inf).

    As transformers' warpers: the least likely are left out that have no more than 1 - top_p together; never all.
    """
    highest = float(logits.max())
    if highest == NEVER:
        return None
    chances: NDArray[np.float64] = np.exp((logits.astype(np.float64) - highest) / temperature)
    chances /= chances.sum()
    if top_p < 1:
        rising = np.argsort(chances, kind="stable")
        unlikely = np.cumsum(chances[rising]) <= 1 - top_p
        unlikely[-1] = False
        chances[rising[unlikely]] = 0.0
        chances /= chances.sum()
    return chances
