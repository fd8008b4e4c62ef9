"""Many tokens' products with their experts, and their weighted sums: y[t] = Σ weights[t, u] · (w[ids[t, u]] · x[t, u]).

The kernels of products with many columns make them, in one pass: no expert's result is written to memory, but added
onto y at once, times its weight. A token's experts are added in the order of their numbers, whatever their ranks.

An item is a band of w's rows and a group. A band's turn says how many groups were added to its rows of y, and whether
a thread is at the next one: so a band is never at two threads at once, groups are added in their order, and results do
not depend on the number of threads. Each thread has bands of its own, and goes round them, a group a round; when none
is left to take it helps others. Nobody waits for a turn: it is whoever ends one that goes on with the band.

Tensors are y, w, the weights, dense, and ids. Extras are, past those of a product, where the turns lie, and how many
slices of x there were before.
"""

from __future__ import annotations

import numpy as np

from graphrt.backends.cpu.args import address, claim, share, size, stride, word
from graphrt.backends.cpu.grouping import (
    COLUMN_BYTES,
    COLUMNS,
    COUNTER,
    IDS,
    LAST,
    WORKSPACE,
    X_ROW,
    Y_ADDRESS,
    W,
    X,
    Y,
    column_word,
    group_count,
    group_word,
)
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.jit import Kernel
from graphrt.backends.cpu.memory import (
    load_f32,
    load_f32_first,
    load_integer,
    load_one,
    store_f32,
    store_f32_first,
    store_integer,
)
from graphrt.backends.cpu.simd import fma, splat
from graphrt.backends.cpu.sync import atomic_add, atomic_exchange_if, atomic_load

SUM = "weighted_sum"  # the name of the op, for kernels that make a product, or together with it what reads it
TURNS, SLICES_BEFORE = WORKSPACE + 8, WORKSPACE + 9
LEAST_ROWS = 8  # of a band
LANES = 16
ZERO, NAN = np.float32(0), np.float32(np.nan)


def turns_bytes(height: int) -> int:
    """Bytes of the turns of so many rows."""
    return 8 * -(-height // LEAST_ROWS)


def start_sums() -> Kernel:
    """Native: y with nothing added, and NaN where an id is no expert's; the turns, and the columns' rows of y."""

    def run(args, ith, nth):
        width = size(args, Y, 3)
        first, last = share((width + LEAST_ROWS - 1) // LEAST_ROWS, ith, nth)
        for band in range(first, last):
            store_integer(_turn(args, band), "i64", 0)
        first, last = share(size(args, Y, 2), ith, nth)
        for token in range(first, last):
            start, y = splat(_start_of(args, token), LANES), address(args, Y) + token * stride(args, Y, 2)
            for i in range(0, width, LANES):
                store_f32_first(y + 4 * i, "f32", start, width - i)
        groups = group_count(args)
        if groups > 0:
            first, last = share(group_word(args, groups - 1, LAST), ith, nth)
            for column in range(first, last):
                token = column_word(args, column, X_ROW) // size(args, IDS, 3)
                _set_row(args, column, address(args, Y) + token * stride(args, Y, 2))

    return run


@helper
def _set_row(args, column, target):
    entry = word(args, WORKSPACE) + word(args, COLUMNS) + COLUMN_BYTES * column
    store_integer(entry + 8 * Y_ADDRESS, "i64", target)


@helper
def _start_of(args, token):
    for rank in range(size(args, IDS, 3)):
        expert = load_integer(address(args, IDS) + token * stride(args, IDS, 2) + rank * stride(args, IDS, 3), "i32")
        if not 0 <= expert < size(args, W, 1):
            return NAN
    return ZERO


# ---- turns: a word for each band, twice the groups that were added, of all slices; 1 more while a thread is at it ----


@helper
def _turn(args, band):
    return word(args, WORKSPACE) + word(args, TURNS) + 8 * band


def item_finder(unit: str, is_taken: bool):
    """A helper: a thread's next item after one of the band `last`, as group · bands + band; one past the last if none.

    Threads take items in order; those of a weighted sum by turns, of bands that are free.

    Args:
        is_taken: whether a turn is taken, or the thread only looks which may come next.
    """

    @helper
    def in_order(args, last, bands, ith, nth):
        return claim(word(args, COUNTER), 1)

    @helper
    def by_turns(args, last, bands, ith, nth):
        before = word(args, SLICES_BEFORE) * group_count(args)
        for away in range(nth):
            first, end = share(bands, (ith + away) % nth, nth)
            start = last + 1 if first <= last < end else first
            for i in range(end - first):
                band = start + i if start + i < end else start + i - (end - first)
                turn = atomic_load(_turn(args, band))
                group = turn // 2 - before
                is_free = turn % 2 == 0 and group < group_count(args)
                if is_free and (not is_taken or atomic_exchange_if(_turn(args, band), turn, turn + 1)):
                    return group * bands + band
        return group_count(args) * bands

    return by_turns if unit == SUM else in_order


@helper
def end_turn(args, band):
    """Let the band's next group be taken."""
    atomic_add(_turn(args, band), 1)


# ---- sums ------------------------------------------------------------------------------------------------------------


@helper
def add_weighted(args, column, row, source, count):
    """Add `count` rows of a column's product, times its weight, onto its token's."""
    factor = splat(load_one(address(args, X) + 4 * column_word(args, column, X_ROW), "f32"), LANES)
    y = column_word(args, column, Y_ADDRESS) + 4 * row
    whole = count - count % LANES
    for i in range(0, whole, LANES):
        v = fma(load_f32(source + 4 * i, "f32", LANES), factor, load_f32(y + 4 * i, "f32", LANES))
        store_f32(y + 4 * i, "f32", v)
    if whole < count:
        left, target = count - whole, y + 4 * whole
        v = load_f32_first(source + 4 * whole, "f32", LANES, left)
        store_f32_first(target, "f32", fma(v, factor, load_f32_first(target, "f32", LANES, left)), left)
