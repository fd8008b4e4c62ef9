"""Moving bytes between memories: whole values, and of an expert weight only what the tokens chose.

Between memories of which one belongs to an asynchronous device the host only begins to move them, through memory of its
own in which they wait (staging), so that their source may change meanwhile; it waits itself for what it will read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from graphrt.backend import Backend
from graphrt.buffer import HOST, HostBuffer, Location, failed_copy
from graphrt.copies import Copy
from graphrt.dtypes import Array
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
    memory, other = source.place.buffer.memory, target.place.buffer.memory
    label = f"{copy.value.name} ({copy.nbytes:,} bytes) from {memory} to {other}"
    spans = _all_of(copy) if copy.experts is None or chosen is None else _chosen_of(copy, copy.experts, chosen, label)
    carry = _carrier(copy, source, target, label, slot)

    def run() -> None:
        for first, nbytes in spans():
            carry(first, nbytes)

    return run


def _all_of(copy: Copy) -> Spans:
    everything = [(0, copy.nbytes)]
    return lambda: everything


def _chosen_of(copy: Copy, experts: Tensor, chosen: End, label: str) -> Spans:
    """The chosen experts' rows of a weight, as (first byte, bytes)."""
    weight = copy.value
    width = weight.strides[0]

    def spans() -> Iterator[tuple[int, int]]:
        numbers = np.empty(experts.extent, np.uint8)
        chosen.place.buffer.begin_read(chosen.place.offset, numbers, label)
        chosen.backend.synchronize()
        for first, last in runs(experts.array_over(numbers), weight.shape[0]):
            yield first * width, (last - first) * width

    return spans


def _carrier(copy: Copy, source: End, target: End, label: str, slot: Slot) -> Carry:
    """The way for bytes [first, first + nbytes) of a copy."""
    devices = [end.place.buffer.memory for end in (source, target) if end.backend.asynchronous]
    if not devices:
        return _at_once(source.place, target.place, label)
    if target.place.buffer.memory == HOST:
        return _to_host(source, target.place, label)
    if not copy.is_staged(source.place.buffer.memory, devices):
        return _held(source.place, target.place, label)
    return _staged(copy, source, target, label, slot)


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
        source.backend.synchronize()

    return carry


def _held(source: Location, target: Location, label: str) -> Carry:
    """From the host, of what does not change."""

    def carry(first: int, nbytes: int) -> None:
        target.buffer.begin_write(target.offset + first, source.buffer.read(source.offset + first, nbytes), label)

    return carry


def _staged(copy: Copy, source: End, target: End, label: str, slot: Slot) -> Carry:
    staging: dict[int, Array] = {}
    here, there = source.place, target.place

    def carry(first: int, nbytes: int) -> None:
        held = staging.get(slot.number)
        if held is None:
            held = staging[slot.number] = np.empty(copy.nbytes, np.uint8)
        waiting = held[first : first + nbytes]
        here.buffer.begin_read(here.offset + first, waiting, label)
        target.backend.wait_for(source.backend.record())
        there.buffer.begin_write(there.offset + first, waiting, label)

    return carry


def runs(ids: Array, count: int) -> Iterator[tuple[int, int]]:
    """The distinct numbers below `count` among the ids, as runs [first, last) of neighbours."""
    distinct = np.unique(ids)
    distinct = distinct[(distinct >= 0) & (distinct < count)]
    cuts = np.flatnonzero(np.diff(distinct) != 1) + 1
    for run in np.split(distinct, cuts):
        if run.size:
            yield int(run[0]), int(run[-1]) + 1
