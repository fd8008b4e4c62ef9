"""Moving bytes between memories: whole values, and of an expert weight only what the tokens chose."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from graphrt.buffer import Location
from graphrt.copies import Copy
from graphrt.dtypes import Array


def copy_step(copy: Copy, source: Location, target: Location, chosen: Location | None) -> Callable[[], None]:
    """What does a copy when called; `chosen` is where the chosen experts' numbers lie, for a copy by expert."""
    if copy.experts is None or chosen is None:
        return lambda: move(source, target, copy.nbytes)
    experts, weight = copy.experts, copy.value
    width = weight.strides[0]

    def copy_chosen() -> None:
        ids = experts.array_over(np.array(chosen.buffer.read(chosen.offset, experts.extent)))
        for first, last in runs(ids, weight.shape[0]):
            move(source.after(first * width), target.after(first * width), (last - first) * width)

    return copy_chosen


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
