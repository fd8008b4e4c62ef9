"""Many tokens' products with their experts, and their weighted sums: y[t] = Σ weights[t, u] · (w[ids[t, u]] · x[t, u]).

The kernels of products with many columns make them, in one pass: no expert's result is written to memory, but added
onto y at once, times its weight. A token's experts are added in the order of their numbers, whatever their ranks.

An item is a band of w's rows and a group. Each thread has bands of its own, and takes them group by group; who is
through helps others. Turns keep the order: a band's groups are added one after the other, whoever does it, so that
results do not depend on the number of threads. Threads wait for their turns only where several work at the same bands.

Tensors are y, w, the weights, dense, and ids. Extras are, past those of a product, where the turns lie and their bytes:
a line for each thread, of the items that were claimed of its bands, then a word for each band, of the groups added.
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
from graphrt.backends.cpu.sync import atomic_load, atomic_store, wait_once

SUM = "weighted_sum"  # the name of the op, for kernels that make a product, or together with it what reads it
TURNS, TURNS_BYTES = WORKSPACE + 8, WORKSPACE + 9
LINE = 64  # bytes of a cache line
LEAST_ROWS = 8  # of a band
SPINS = 1000  # of waiting, before the core is left to others
LANES = 16
ZERO, NAN = np.float32(0), np.float32(np.nan)


def turns_bytes(height: int, threads: int) -> int:
    """Bytes of the turns of so many rows."""
    return LINE * threads + 8 * -(-height // LEAST_ROWS)


def start_sums() -> Kernel:
    """Native: y with nothing added, and NaN where an id is no expert's; the turns, and the columns' rows of y."""

    def run(args, ith, nth):
        first, last = share(word(args, TURNS_BYTES) // 8, ith, nth)
        for i in range(first, last):
            store_integer(_turns(args) + 8 * i, "i64", 0)
        width = size(args, Y, 3)
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


# ---- turns -----------------------------------------------------------------------------------------------------------


@helper
def _turns(args):
    return word(args, WORKSPACE) + word(args, TURNS)


def item_claimer(unit: str):
    """A helper: the next item of a thread, number group · bands + band, or one past the last.

    Of a weighted sum it is one of the thread's own, then of the next thread's, and so on: `away` says whose.
    """

    @helper
    def next_of_all(args, away, bands, ith, nth):
        return away, claim(word(args, COUNTER), 1)

    @helper
    def next_of_own(args, away, bands, ith, nth):
        while away < nth:
            owner = (ith + away) % nth
            first, last = share(bands, owner, nth)
            number = claim(_turns(args) + LINE * owner, 1)
            if number < (last - first) * group_count(args):
                return away, number // (last - first) * bands + first + number % (last - first)
            away += 1
        return away, group_count(args) * bands

    return next_of_own if unit == SUM else next_of_all


@helper
def wait_for_turn(args, band, group, nth):
    """Wait until the groups before this one are added.

    A thread may have claimed its next item by then. It waits for what was claimed before the item that it is at: so of
    all threads the one at the item that was claimed first does not wait.
    """
    turn, tries = _turns(args) + LINE * nth + 8 * band, 0
    while atomic_load(turn) < group:
        wait_once(tries, SPINS)
        tries += 1


@helper
def end_turn(args, band, group, nth):
    atomic_store(_turns(args) + LINE * nth + 8 * band, group + 1)


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
