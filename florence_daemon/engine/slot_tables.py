"""What the torch decoder keeps of its questions: tables whose places answers leave and others take.

A question has a slot; slots lie together from 0 on. In it are the keys and values of its picture and prompt, and for
each of its beams those of what that has written. Each row writes at its own age, so rows of different ages lie side by
side and a mask hides what is not written yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from florence_daemon.engine.bart import Memory


@dataclass(frozen=True)
class Room:
    """How much tables hold: slots, beams of each, tokens that each beam writes, tokens that a slot reads."""

    slots: int = 0
    beams: int = 0
    written: int = 0
    read: int = 0

    def with_at_least(self, other: Room) -> Room:
        """The larger of each."""
        return Room(
            max(self.slots, other.slots),
            max(self.beams, other.beams),
            max(self.written, other.written),
            max(self.read, other.read),
        )


class SlotTables:
    """The tables, with the ids and ages of the rows that are read in a step.

    own_keys, own_values: (layers, slots, beams, heads, written, d). memory_keys, memory_values: (layers, slots, heads,
    read, d). is_read: (slots, 1, 1, read). ids: (slots, beams). ages: (slots,).
    """

    def __init__(self, layers: int, heads: int, head_width: int, like: Tensor, room: Room) -> None:
        self.room = room
        self._new = partial(SlotTables, layers, heads, head_width, like)
        # Zeros, not what was there: a masked NaN is still one.
        own = (layers, room.slots, room.beams, heads, room.written, head_width)
        self.own_keys, self.own_values = like.new_zeros(own), like.new_zeros(own)
        read = (layers, room.slots, heads, room.read, head_width)
        self.memory_keys, self.memory_values = like.new_zeros(read), like.new_zeros(read)
        self.is_read = like.new_zeros((room.slots, 1, 1, room.read), dtype=torch.bool)
        self.is_read[..., :1] = True  # an empty slot attends to something: the mean of nothing is no number
        self.ids = like.new_zeros((room.slots, room.beams), dtype=torch.long)
        self.ages = like.new_zeros(room.slots, dtype=torch.long)

    def grown(self, room: Room) -> SlotTables:
        """Larger tables with the same in them; these stay as they are, should there be no memory for those."""
        larger = self._new(room)
        for name in ("own_keys", "own_values", "memory_keys", "memory_values", "is_read"):
            old = getattr(self, name)
            getattr(larger, name)[tuple(slice(extent) for extent in old.shape)] = old
        return larger

    def put(self, slot: int, memory: Memory) -> None:
        """Let a slot hold one question's memory."""
        length = memory.keys.shape[3]
        self.memory_keys[:, slot, :, :length] = memory.keys[:, 0]
        self.memory_values[:, slot, :, :length] = memory.values[:, 0]
        self.is_read[slot] = torch.arange(self.room.read, device=self.is_read.device) < length

    def move(self, source: int, target: int, written: int) -> None:
        """Copy a slot onto another; `written` tokens are there."""
        for table in (self.own_keys, self.own_values):
            table[:, target, :, :, :written] = table[:, source, :, :, :written]
        for table in (self.memory_keys, self.memory_values):
            table[:, target] = table[:, source]
        self.is_read[target] = self.is_read[source]

    def take_over(self, sources: Sequence[int], targets: Sequence[int], written: int) -> None:
        """Let rows have what other rows have written; a row is slot × beams + beam."""
        if sources:
            for table in (self.own_keys, self.own_values):
                rows = table.flatten(1, 2)
                rows[:, targets, :, :written] = rows[:, sources, :, :written]

    def memory(self, slots: int, length: int, *, is_whole: bool) -> Memory:
        """What the first slots have read. is_whole: they all have this length, so nothing is to be hidden."""
        mask = None if is_whole else self.is_read[:slots, ..., :length]
        return Memory(self.memory_keys[:, :slots, :, :length], self.memory_values[:, :slots, :, :length], mask)


class WrittenRows:
    """`bart.Written` for the first slots: rows write at their ages, and see `columns` of which the mask hides some."""

    def __init__(self, tables: SlotTables, slots: int, columns: int, *, is_even: bool) -> None:
        ages, beams = tables.ages[:slots], tables.room.beams
        self._keys, self._values = (table[:, :slots].flatten(1, 2) for table in (tables.own_keys, tables.own_values))
        self._columns = columns
        self._is_even = is_even
        self._ages = ages.repeat_interleave(beams)
        self._rows = torch.arange(slots * beams, device=ages.device)
        every = torch.arange(columns, device=ages.device)
        self.mask = None if is_even else (every <= self._ages[:, None])[:, None, None]

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add each row's new token, (R, heads, 1, d); gives all that a layer has now, (R, heads, columns, d)."""
        keys, values = self._keys[layer], self._values[layer]
        if self._is_even:  # all at the same age: written by a copy, which is quicker than an index
            keys[:, :, self._columns - 1 : self._columns] = key
            values[:, :, self._columns - 1 : self._columns] = value
        else:
            keys[self._rows, :, self._ages] = key.squeeze(2)
            values[self._rows, :, self._ages] = value.squeeze(2)
        return keys[:, :, : self._columns], values[:, :, : self._columns]
