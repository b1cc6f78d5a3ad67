"""The questions that are decoded side by side, each with a search of its own: they come and go between steps."""

from __future__ import annotations

from collections.abc import Collection

from florence_daemon.engine.decoder import Backend, Continuations
from florence_daemon.engine.search import Search
from florence_daemon.engine.work import Question


class Slots:
    """A decoder and its questions, in its order."""

    def __init__(self, backend: Backend) -> None:
        self._decoder = backend.new_decoder()
        self.questions: list[Question] = []
        self._searches: list[Search] = []
        self._parents: list[list[int]] = []  # of each question's rows, for the next step

    def __len__(self) -> int:
        return len(self.questions)

    def join(self, question: Question) -> None:
        """Let a question in."""
        beams = question.settings.num_beams
        # Noted first: when the decoder has no memory for it, it counts among those that were too many.
        self.questions.append(question)
        self._searches.append(Search(question.settings))
        self._parents.append(list(range(beams)))
        self._decoder.join(question.work.features, question.prompt, beams)

    def step(self) -> tuple[list[tuple[Question, list[int]]], list[tuple[Question, Exception]]]:
        """Write a token of every answer. Returns who left: with the ids of its answer, or with why not."""
        ids = [token for search in self._searches for token in search.last_ids]
        offers = self._decoder.step([parent for parents in self._parents for parent in parents], ids)
        done, failed, start = [], [], 0
        for place, (question, search) in enumerate(zip(self.questions, self._searches, strict=True)):
            rows = range(start, start := start + question.settings.num_beams)
            error = self._advance(place, offers, rows)
            if error is not None:
                failed.append((question, error))
            elif search.is_done:
                done.append((question, search.answer))
        self.leave([question for question, _ in (*done, *failed)])
        return done, failed

    def leave(self, questions: Collection[Question]) -> None:
        """Take questions out, those that are in."""
        places = [place for place, question in enumerate(self.questions) if question in questions]
        if places:
            self._decoder.leave(places)
        for place in reversed(places):
            del self.questions[place], self._searches[place], self._parents[place]

    def _advance(self, place: int, offers: Continuations, rows: range) -> Exception | None:
        try:
            self._parents[place] = self._searches[place].advance(offers, rows)
        except Exception as error:  # One answer that cannot be searched must not cost the others theirs.
            return error
        return None
