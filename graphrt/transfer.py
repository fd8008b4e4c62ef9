"""Moving bytes between memories: whole values, and of an expert weight only what the tokens chose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from graphrt.buffer import Location
from graphrt.copies import Copy
from graphrt.dtypes import Array
from graphrt.errors import KernelError
from graphrt.tensor import Tensor


def copy_step(copy: Copy, source: Location, target: Location, chosen: Location | None) -> Callable[[], None]:
    """What does a copy when called; `chosen` is where the chosen experts' numbers lie, for a copy by expert.

    It raises KernelError, naming the tensor and both memories, if a device fails to copy.
    """
    spans = _all_of(copy) if copy.experts is None or chosen is None else _chosen_of(copy, copy.experts, chosen)

    def run() -> None:
        try:
            for first, nbytes in spans():
                move(source.after(first), target.after(first), nbytes)
        except Exception as error:
            raise KernelError(
                f"[copy] {copy.value.name} ({copy.nbytes:,} bytes) from {source.buffer.memory} "
                f"to {target.buffer.memory} failed: {error}"
            ) from error

    return run


Spans = Callable[[], Iterable[tuple[int, int]]]


def _all_of(copy: Copy) -> Spans:
    everything = [(0, copy.nbytes)]
    return lambda: everything


def _chosen_of(copy: Copy, experts: Tensor, chosen: Location) -> Spans:
    """The chosen experts' rows of a weight, as (first byte, bytes)."""
    weight = copy.value
    width = weight.strides[0]

    def spans() -> Iterator[tuple[int, int]]:
        ids = experts.array_over(np.array(chosen.buffer.read(chosen.offset, experts.extent)))
        for first, last in runs(ids, weight.shape[0]):
            yield first * width, (last - first) * width

    return spans


def move(source: Location, target: Location, nbytes: int) -> None:
    """Copy bytes from one memory to another."""
    target.buffer.write(target.offset, source.buffer.read(source.offset, nbytes))


def runs(ids: Array, count: int) -> Iterator[tuple[int, int]]:
    """The distinct numbers below `count` among the ids, as runs [first, last) of neighbours."""
    distinct = np.unique(ids)
    distinct = distinct[(distinct >= 0) & (distinct < count)]
    cuts = np.flatnonzero(np.diff(distinct) != 1) + 1
    for run in np.split(distinct, cuts):
        if run.size:
            yield int(run[0]), int(run[-1]) + 1
