"""Writes the answers to several questions at once, in torch: `decoder.Decoder` over slots that answers leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from florence_daemon.engine.decoder import LIKELIEST, Continuations
from florence_daemon.engine.layout import Layout
from florence_daemon.engine.model import Florence2
from florence_daemon.engine.runners import Offered, Runner
from florence_daemon.engine.search import NEVER
from florence_daemon.engine.slot_tables import Room, SlotTables, WrittenRows

# Tokens that an answer has room for at first; doubled when one is longer.
ROOM = 64
# What is read gets room in such steps, so that prompts of nearly the same length do not move the tables.
LENGTH_STEP = 32
# How many slots there are room for, and how many a step of a static shape decodes.
SLOT_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


@dataclass
class _Seat:
    """Where a question sits. age: tokens that it has written; length: tokens that it has read."""

    slot: int
    beams: int
    length: int
    age: int = 0


class TorchDecoder:
    """See `decoder.Decoder`.

    is_static: pad each step to one of few shapes, over memory that stays where it is, as CUDA graphs need it.
    """

    def __init__(self, network: Florence2, layout: Layout, runner: Runner, *, is_static: bool = False) -> None:
        text = layout.text
        heads = text["decoder_attention_heads"]
        self._network = network
        self._never_id = layout.image_token_id
        self._runner = runner
        self._is_static = is_static
        self._seats: list[_Seat] = []
        like = network.shared.weight
        self._empty = SlotTables(text["decoder_layers"], heads, text["d_model"] // heads, like, Room())
        self._tables = self._empty

    def join(self, features: Tensor, prompt: Sequence[int], beams: int) -> None:
        """Add a question behind the others. features: (I, D), on the device."""
        with torch.inference_mode():
            memory = self._network.read(features[None], torch.tensor([prompt], device=features.device))
            slot, length = len(self._seats), memory.keys.shape[3]
            self._ensure(Room(fitting(SLOT_COUNTS, slot + 1), beams, ROOM, -(-length // LENGTH_STEP) * LENGTH_STEP))
            self._tables.put(slot, memory)
        self._seats.append(_Seat(slot, beams, length))

    def leave(self, questions: Sequence[int]) -> None:
        """Remove questions; the last slot's moves to the place that one leaves."""
        for place in sorted(set(questions), reverse=True):
            left = self._seats.pop(place)
            last = max(self._seats, key=lambda seat: seat.slot, default=left)
            if last.slot > left.slot:
                with torch.inference_mode():
                    self._tables.move(last.slot, left.slot, last.age)
                last.slot = left.slot
        if not self._seats:  # what a long answer or many questions needed is given back
            self._tables = self._empty
            self._runner.forget()

    def step(self, parents: Sequence[int], ids: Sequence[int]) -> Continuations:
        """Let rows take over what their parents have written, then read `ids`; see `decoder.Decoder`."""
        beams = self._tables.room.beams
        rows = [seat.slot * beams + beam for seat in self._seats for beam in range(seat.beams)]
        firsts = [seat.slot * beams for seat in self._seats for _ in range(seat.beams)]
        sources = [first + parent for first, parent in zip(firsts, parents, strict=True)]
        with torch.inference_mode():
            self._take_over(sources, rows)
            offered = self._read(rows, ids)
            likeliest, best_ids, log_norm = (table.cpu().numpy()[rows] for table in offered[1:])
        for seat in self._seats:
            seat.age += 1
        return Continuations(
            likeliest, best_ids, log_norm, lambda some: offered.logits[[rows[row] for row in some]].cpu().numpy()
        )

    def _take_over(self, sources: Sequence[int], rows: Sequence[int]) -> None:
        changed = [place for place, row in enumerate(rows) if sources[place] != row]
        self._tables.take_over([sources[at] for at in changed], [rows[at] for at in changed], self._oldest)

    def _read(self, rows: Sequence[int], ids: Sequence[int]) -> Offered:
        """Run a step of every slot, in the smallest shape that holds them or that there is a graph for."""
        slots, columns, read = len(self._seats), self._oldest + 1, max(seat.length for seat in self._seats)
        # Doubled: most answers are short, and room for the longest costs much more.
        self._ensure(Room(written=ROOM * 2 ** max(0, ((columns - 1) // ROOM).bit_length())))
        tables = self._tables
        if self._is_static:
            slots, columns, read = fitting(SLOT_COUNTS, slots), tables.room.written, tables.room.read
        grid = np.zeros((slots, tables.room.beams), np.int64)
        grid.reshape(-1)[rows] = ids
        ages = np.zeros(slots, np.int64)
        ages[[seat.slot for seat in self._seats]] = [seat.age for seat in self._seats]
        tables.ids[:slots] = torch.from_numpy(grid)
        tables.ages[:slots] = torch.from_numpy(ages)
        is_even = not self._is_static and len({seat.age for seat in self._seats}) == 1
        is_whole = not self._is_static and all(seat.length == read for seat in self._seats)

        def write() -> Offered:
            written = WrittenRows(tables, slots, columns, is_even=is_even)
            memory = tables.memory(slots, read, is_whole=is_whole)
            logits = self._network.write(tables.ids[:slots], tables.ages[:slots], written, memory).float()
            logits[:, self._never_id] = NEVER
            best, best_ids = logits.topk(min(LIKELIEST, logits.shape[1]))
            return Offered(logits, best, best_ids, logits.logsumexp(dim=-1))

        return self._runner.run(write, (slots, columns))

    def _ensure(self, room: Room) -> None:
        """Make room for this much, if there is not."""
        wanted = self._tables.room.with_at_least(room)
        if wanted != self._tables.room:
            self._tables = self._tables.grown(wanted)
            self._runner.forget()

    @property
    def _oldest(self) -> int:
        return max(seat.age for seat in self._seats)


def fitting(counts: Sequence[int], needed: int) -> int:
    """The smallest of the counts that suffices; above them all, a multiple of the largest."""
    return next((count for count in counts if count >= needed), -(-needed // counts[-1]) * counts[-1])
