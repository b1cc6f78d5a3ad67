"""Decodes several questions at once in OpenVINO: which rows of its state and tables belong to which question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from florence_daemon.engine.decoder import Continuations
from florence_daemon.engine.openvino_form import Form
from florence_daemon.engine.openvino_quiet import ov
from florence_daemon.engine.openvino_run import let_go

NEVER = np.float32(-np.inf)
# Tables grow by whole blocks: tokens of a prompt, and questions.
_PROMPT_BLOCK = 32
# Columns that nobody needs any more are cut off when there are this many, and they are a share of all.
_CUT_AT, _CUT_SHARE = 32, 0.25


@dataclass(eq=False)
class _Question:
    """A question: its place in the tables, its beams, and the tokens that each has written.

    first: the column of the state in which its history begins. rows: the state's row that each beam goes on from.
    """

    place: int
    beams: int
    first: int
    rows: list[int]
    written: int = 0


class OpenVinoDecoder:
    """Decoder with slots; see `decoder.Decoder`.

    The network wants a grid: for each question as many rows as the one with most beams has. In its state, every step
    adds one column to all rows. A question that joined later has nothing in earlier columns, which a mask hides: BART's
    positions are in the tokens, so it does not matter in which column a token lies.
    """

    def __init__(self, form: Form, embedding: NDArray[np.float32], read: Any, write: Any) -> None:
        """read, write: OpenVINO's requests; read can be shared with others, write is this decoder's own."""
        self._form = form
        self._embedding = embedding
        self._read = read
        self._write = write
        self._write.reset_state()
        self._questions: list[_Question] = []
        self._columns = 0
        self._tables = [np.zeros(shape, np.float32) for shape in self._table_shapes(0, form.image_tokens)]
        self._seen_mask = np.zeros((0, 1, 1, form.image_tokens), np.float32)

    def join(self, features: NDArray[np.float32], prompt: Sequence[int], beams: int) -> None:
        """Read picture and prompt for a new question."""
        # Outputs stay where OpenVINO has them until they are in the tables: a copy would be 22 MB for base.
        found = self._read.infer([features, self._embed(list(prompt))[None]], share_outputs=True)
        place, length = len(self._questions), features.shape[1] + len(prompt)
        self._make_room(place + 1, length)
        for layer in range(self._form.layers):
            keys, values = self._tables[2 * layer][place], self._tables[2 * layer + 1][place]
            keys[:, :, :length], values[:, :length] = found[0][layer, 0], found[1][layer, 0]
            keys[:, :, length:], values[:, length:] = 0, 0
        self._seen_mask[place, :, :, :length] = 0
        self._seen_mask[place, :, :, length:] = NEVER
        self._questions.append(_Question(place, beams, self._columns, [0] * beams))

    def leave(self, questions: Sequence[int]) -> None:
        """Take questions out; the last place moves into one that becomes free, so that places stay together."""
        for gone in [self._questions[number] for number in questions]:
            self._questions.remove(gone)
            last = len(self._questions)
            moved = next((each for each in self._questions if each.place == last), None)
            if moved is not None:
                for table in (*self._tables, self._seen_mask):
                    table[gone.place] = table[last]
                moved.place = gone.place
        self._forget_columns()

    def step(self, parents: Sequence[int], ids: Sequence[int]) -> Continuations:
        """Decode one token for each row."""
        rows = self._rows()
        owners = [question for question in self._questions for _ in range(question.beams)]
        places = len(self._questions)
        ages, grid_rows = np.zeros(places, np.int64), places * self._grid_beams
        state_rows, tokens = np.zeros(grid_rows, np.int32), np.zeros(grid_rows, np.int64)
        first = np.full(grid_rows, self._columns)
        state_rows[rows] = [owner.rows[parent] for owner, parent in zip(owners, parents, strict=True)]
        tokens[rows] = ids
        first[rows] = [owner.first for owner in owners]
        for question in self._questions:
            ages[question.place] = question.written
        own_mask = np.where(np.arange(self._columns + 1) < first[:, None], NEVER, np.float32(0))
        embedded = self._embed(tokens).reshape(places, self._grid_beams, -1)
        self._infer(embedded, ages, state_rows, own_mask[:, None, None])
        self._columns += 1
        place = 0
        for question in self._questions:
            question.rows = rows[place : place + question.beams].tolist()
            question.written += 1
            place += question.beams
        return self._continuations(rows)

    def _embed(self, ids: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """Read rows of the mapped table; each brings 64 KB of the file along, 100 MB in a batch's answers."""
        rows = self._embedding[ids]
        let_go(self._embedding.base)
        return rows

    @property
    def _grid_beams(self) -> int:
        return max(question.beams for question in self._questions)

    def _rows(self) -> NDArray[np.int64]:
        """The grid's row of each row that the caller knows."""
        beams = self._grid_beams
        return np.concatenate([question.place * beams + np.arange(question.beams) for question in self._questions])

    def _infer(
        self,
        embedded: NDArray[np.float32],
        ages: NDArray[np.int64],
        state_rows: NDArray[np.int32],
        own_mask: NDArray[np.float32],
    ) -> None:
        places = len(self._questions)
        inputs = {"embedded": embedded, "ages": ages, "parents": state_rows, "own_mask": own_mask}
        inputs["seen_mask"] = self._seen_mask[:places]
        for number, table in enumerate(self._tables):
            inputs[f"seen.{number}"] = table[:places]
        for name, array in inputs.items():
            # Not copied: tables of some hundred megabytes are read where they lie.
            self._write.set_tensor(name, ov.Tensor(np.ascontiguousarray(array), shared_memory=True))
        self._write.infer(share_outputs=True)

    def _continuations(self, rows: NDArray[np.int64]) -> Continuations:
        def all_logits(wanted: Sequence[int]) -> NDArray[np.float32]:
            logits: NDArray[np.float32] = self._write.get_tensor("logits").data[rows[list(wanted)]]
            return logits

        likeliest, ids, log_norm = (
            self._write.get_tensor(name).data[rows] for name in ("likeliest", "ids", "log_norm")
        )
        return Continuations(likeliest, ids.astype(np.int64), log_norm, all_logits)

    def _table_shapes(self, places: int, length: int) -> list[tuple[int, ...]]:
        form = self._form
        keys, values = (places, form.heads, form.head_width, length), (places, form.heads, length, form.head_width)
        return [keys, values] * form.layers

    def _make_room(self, places: int, length: int) -> None:
        """Let the tables hold so many questions of such a length."""
        room, longest = self._seen_mask.shape[0], self._seen_mask.shape[3]
        if places <= room and length <= longest:
            return
        if places > room:
            room = max(places, 2 * room)
        if length > longest:
            longest = self._form.image_tokens + -(-(length - self._form.image_tokens) // _PROMPT_BLOCK) * _PROMPT_BLOCK
        used = len(self._questions)
        for number, shape in enumerate(self._table_shapes(room, longest)):
            table = np.zeros(shape, np.float32)
            old = self._tables[number][:used]
            table[:used, :, : old.shape[2], : old.shape[3]] = old
            self._tables[number] = table
        mask = np.full((room, 1, 1, longest), NEVER)
        mask[:used, :, :, : self._seen_mask.shape[3]] = self._seen_mask[:used]
        self._seen_mask = mask

    def _forget_columns(self) -> None:
        """Cut off the columns that lie before everybody's history."""
        if not self._questions:
            self._write.reset_state()
            self._columns = 0
            return
        unused = min(question.first for question in self._questions)
        if unused < max(_CUT_AT, _CUT_SHARE * self._columns):
            return
        for state in self._write.query_state():
            state.state = ov.Tensor(np.ascontiguousarray(state.state.data[:, :, unused:]))
        self._columns -= unused
        for question in self._questions:
            question.first -= unused
