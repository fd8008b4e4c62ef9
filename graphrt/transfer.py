"""Moving bytes between memories: whole values, and of an expert weight only what the tokens chose.

Between memories of which one belongs to an asynchronous device the host only begins to move them, through memory of its
own in which they wait (staging), so that their source may change meanwhile; it waits itself for what it will read.
Weights that a device's copy queue brings do not change, and go from where they lie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from graphrt.backend import Backend
from graphrt.buffer import ALIGNMENT, HOST, HostBuffer, Location, failed_copy
from graphrt.copies import Copy
from graphrt.copy_queue import CopyQueue
from graphrt.dtypes import Array
from graphrt.events import Event
from graphrt.tensor import Tensor


@dataclass(frozen=True)
class End:
    """One end of a copy: where the bytes lie, and a backend that works on that memory."""

    place: Location
    backend: Backend


@dataclass
class Slot:
    """Number of the run that the host begins, among those under way: each has staging of its own."""

    number: int = 0


Spans = Callable[[], Iterable[tuple[int, int]]]
Carry = Callable[[int, int], None]


def copy_step(copy: Copy, source: End, target: End, chosen: End | None, slot: Slot) -> Callable[[], None]:
    """What does a copy when called; `chosen` is where the chosen experts' numbers lie, for a copy by expert.

    It raises KernelError, naming the tensor and both memories, if a device fails to copy.
    """
    label = _label(copy.value.name, copy.nbytes, source.place, target.place)
    spans = _all_of(copy) if copy.experts is None or chosen is None else _chosen_of(copy, copy.experts, chosen, label)
    carry = _carrier(copy, source, target, label, slot)

    def run() -> None:
        for first, nbytes in spans():
            carry(first, nbytes)

    return run


@dataclass(frozen=True)
class Placed:
    """A copy, and where its bytes come from and go to."""

    copy: Copy
    source: End
    target: End

    @property
    def end(self) -> int:
        """The offset where its source ends."""
        return self.source.place.offset + self.copy.nbytes

    @property
    def is_staged(self) -> bool:
        devices = [end.place.buffer.memory for end in (self.source, self.target) if end.backend.asynchronous]
        return self.copy.experts is None and self.copy.is_staged(self.source.place.buffer.memory, devices)

    def is_followed_by(self, other: Placed) -> bool:
        """Whether both can go as one copy: with nothing but padding between them, at both ends."""
        (here, there), (next_here, next_there) = ((each.source.place, each.target.place) for each in (self, other))
        same = here.buffer is next_here.buffer and there.buffer is next_there.buffer
        is_near = 0 <= next_here.offset - self.end < ALIGNMENT
        is_alike = next_there.offset - next_here.offset == there.offset - here.offset
        return self.is_staged and other.is_staged and same and is_near and is_alike


def in_rows(copies: Iterable[Placed]) -> list[list[Placed]]:
    """The copies in order, those together that can go as one."""
    found: list[list[Placed]] = []
    for each in copies:
        if found and found[-1][-1].is_followed_by(each):
            found[-1].append(each)
        else:
            found.append([each])
    return found


def row_step(row: Sequence[Placed], slot: Slot) -> Callable[[], None]:
    """What does neighbouring copies as one: a device begins few long copies sooner than many short ones."""
    first, last = row[0], row[-1]
    nbytes = last.end - first.source.place.offset
    names = ", ".join(each.copy.value.name for each in row)
    label = _label(names, nbytes, first.source.place, first.target.place)
    carry = _staged(nbytes, first.source, first.target, label, slot)
    return lambda: carry(0, nbytes)


def _label(names: str, nbytes: int, source: Location, target: Location) -> str:
    return f"{names} ({nbytes:,} bytes) from {source.buffer.memory} to {target.buffer.memory}"


def _all_of(copy: Copy) -> Spans:
    everything = [(0, copy.nbytes)]
    return lambda: everything


def _chosen_of(copy: Copy, experts: Tensor, chosen: End, label: str) -> Spans:
    return lambda: _rows_of(copy.value, _read(experts, chosen, label))


def _read(experts: Tensor, chosen: End, label: str) -> Array:
    """The numbers of the chosen experts, once they are there."""
    numbers = np.empty(experts.extent, np.uint8)
    chosen.place.buffer.begin_read(chosen.place.offset, numbers, label)
    chosen.backend.record().wait()
    return experts.array_over(numbers)


def _rows_of(weight: Tensor, ids: Array) -> Iterator[tuple[int, int]]:
    """The chosen experts' part of a weight, as (first byte, bytes)."""
    width = weight.strides[0]
    for first, last in runs(ids, weight.shape[0]):
        yield first * width, (last - first) * width


def _carrier(copy: Copy, source: End, target: End, label: str, slot: Slot) -> Carry:
    """The way for bytes [first, first + nbytes) of a copy."""
    devices = [end.place.buffer.memory for end in (source, target) if end.backend.asynchronous]
    if not devices:
        return _at_once(source.place, target.place, label)
    if target.place.buffer.memory == HOST:
        return _to_host(source, target.place, label)
    if not copy.is_staged(source.place.buffer.memory, devices):
        return _held(source.place, target.place, label)
    return _staged(copy.nbytes, source, target, label, slot)


def _at_once(source: Location, target: Location, label: str) -> Carry:
    def carry(first: int, nbytes: int) -> None:
        try:
            target.buffer.write(target.offset + first, source.buffer.read(source.offset + first, nbytes))
        except Exception as error:
            raise failed_copy(label, error) from error

    return carry


def _to_host(source: End, target: Location, label: str) -> Carry:
    buffer, place = target.buffer, source.place
    assert isinstance(buffer, HostBuffer)

    def carry(first: int, nbytes: int) -> None:
        start = target.offset + first
        place.buffer.begin_read(place.offset + first, buffer.data[start : start + nbytes], label)
        source.backend.record().wait()

    return carry


def _held(source: Location, target: Location, label: str) -> Carry:
    """From the host, of what does not change."""

    def carry(first: int, nbytes: int) -> None:
        target.buffer.begin_write(target.offset + first, source.buffer.read(source.offset + first, nbytes), label)

    return carry


def _staged(room: int, source: End, target: End, label: str, slot: Slot) -> Carry:
    staging: dict[int, Array] = {}
    here, there = source.place, target.place

    def carry(first: int, nbytes: int) -> None:
        held = staging.get(slot.number)
        if held is None:
            held = staging[slot.number] = target.backend.staging(room)
        waiting = held[first : first + nbytes]
        here.buffer.begin_read(here.offset + first, waiting, label)
        target.backend.wait_for(source.backend.record())
        there.buffer.begin_write(there.offset + first, waiting, label)

    return carry


@dataclass(frozen=True)
class QueuedCopy:
    """A copy of a weight that a device's copy queue does; `chosen` as in `copy_step`."""

    copy: Copy
    source: Location
    target: Location
    chosen: End | None

    def begin(self, queue: CopyQueue, ids: dict[Tensor, Array]) -> None:
        """Begin it; `ids` are the chosen experts' numbers that were read for copies begun with it."""
        copy, label = self.copy, _label(self.copy.value.name, self.copy.nbytes, self.source, self.target)
        spans: Iterable[tuple[int, int]] = [(0, copy.nbytes)]
        if copy.experts is not None and self.chosen is not None:
            if copy.experts not in ids:
                ids[copy.experts] = _read(copy.experts, self.chosen, label)
            spans = _rows_of(copy.value, ids[copy.experts])
        read, here = self.source.buffer.read, self.source.offset
        parts = [(self.target.after(first), read(here + first, nbytes)) for first, nbytes in spans]
        queue.begin_writes(parts, label)


Arrivals = dict[int, Event]  # by the number of a split: after it all is there that copy queues bring for it


def queue_step(copies: Sequence[QueuedCopy], device: Backend, arrivals: Arrivals) -> Callable[[], None]:
    """What begins copies, those needed first ahead, as soon as the device has done what was begun before."""
    queue = device.copy_queue
    assert queue is not None
    by_split = [(number, list(due)) for number, due in groupby(copies, lambda each: each.copy.split)]

    def run() -> None:
        queue.wait_for(device.record())  # their room was something else's until now
        ids: dict[Tensor, Array] = {}
        for number, due in by_split:
            for each in due:
                each.begin(queue, ids)
            arrivals[number] = queue.record()

    return run


def arrival_step(number: int, device: Backend, arrivals: Arrivals) -> Callable[[], None]:
    """What lets a device wait, before a split, for what its copy queue brings for it."""
    return lambda: device.wait_for(arrivals[number])


def runs(ids: Array, count: int) -> Iterator[tuple[int, int]]:
    """The distinct numbers below `count` among the ids, as runs [first, last) of neighbours."""
    distinct = np.unique(ids)
    distinct = distinct[(distinct >= 0) & (distinct < count)]
    cuts = np.flatnonzero(np.diff(distinct) != 1) + 1
    for run in np.split(distinct, cuts):
        if run.size:
            yield int(run[0]), int(run[-1]) + 1
