"""Barriers: where threads must wait for each other in a program, and which small calls one of them does alone.

A call waits for all threads only if it touches memory that another thread may have written since the last barrier, or
writes memory that another may have read. Small calls are done by one thread each: what depends on them goes to the same
thread and needs no barrier, and what does not goes to another meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Span = tuple[int, int]  # addresses, [first, last)

ALL = -1
TOGETHER = 8  # calls between two barriers in which all threads take part: each has a counter to claim work from
SMALL = 16384  # work, as in Call, up to which one thread is as fast as all with a barrier
SMALL_IN_A_ROW = 2 * SMALL  # work of one thread between two barriers


@dataclass(frozen=True)
class Touched:
    """The memory that a call reads and writes, and its work if that is known."""

    reads: Sequence[Span]
    writes: Sequence[Span]
    work: int | None = None


@dataclass
class Turn:
    """How a call is run.

    Args:
        thread: the one that does it alone; ALL, where all take part.
        counter: number of its counter: of TOGETHER that are used in turn with as many others; alone, none.
        barrier: whether all wait for each other after it.
    """

    thread: int
    counter: int = 0
    barrier: bool = False


def turns_of(calls: Sequence[Touched], threads: int) -> list[Turn]:
    """How each call of a program is run on so many threads; a barrier follows the last."""
    turns: list[Turn] = []
    since = 0  # calls from here on are not behind a barrier yet
    bank, load = 0, [0] * threads
    for i, call in enumerate(calls):
        waits_for = {turns[j].thread for j in range(since, i) if _meet(calls[j], call)}
        thread = _thread_for(call, waits_for, load)
        shared = sum(turn.thread == ALL for turn in turns[since:])
        if thread is None or (thread == ALL and (waits_for or shared == TOGETHER)):
            turns[-1].barrier = True
            since, bank, shared, load = i, 1 - bank, 0, [0] * threads
            thread = _thread_for(call, set(), load)
            assert thread is not None
        if thread == ALL:
            turns.append(Turn(ALL, TOGETHER * bank + shared))
        else:
            load[thread] += call.work or 0
            turns.append(Turn(thread))
    if turns:
        turns[-1].barrier = True
    return turns


def _thread_for(call: Touched, waits_for: set[int], load: Sequence[int]) -> int | None:
    """The thread for a call that comes after what those in `waits_for` did; None if a barrier must come first."""
    if call.work is None or call.work > SMALL:
        return ALL
    if not waits_for:
        return min(range(len(load)), key=lambda thread: load[thread])
    (first, *others) = waits_for
    if others or first == ALL or load[first] + call.work > SMALL_IN_A_ROW:
        return None
    return first


def _meet(before: Touched, after: Touched) -> bool:
    """Whether one of two calls writes what the other touches."""
    return (
        _overlap(before.writes, after.reads)
        or _overlap(before.writes, after.writes)
        or _overlap(before.reads, after.writes)
    )


def _overlap(some: Sequence[Span], others: Sequence[Span]) -> bool:
    return any(first < other_last and other_first < last for first, last in some for other_first, other_last in others)
