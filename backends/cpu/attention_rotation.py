"""Turning rows of keys by any number of positions: cosines and sines made from few, without trigonometry for each row.

A turn is a row of cosines and then one of sines, one for each pair. The turn of a rotation is the product of two: that
of a multiple of OFFSETS positions, of which the last used are kept, and that of the rest, from a table. Angles come
from float64, so they are exact at any position.

A turner is a thread's memory for this: `turner_bytes(pairs)` bytes, which `start_turner` makes ready.
"""

from __future__ import annotations

import numpy as np

from graphrt.backends.cpu.elements import FLOAT32
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.memory import load_f32, load_integer, load_one, store_f32, store_integer, store_one
from graphrt.backends.cpu.rope import (
    evens,
    load_speeds,
    lower_pairs,
    odds,
    table_of,
    turn_halves,
    turn_neighbours,
    upper_pairs,
)

OFFSET_BITS = 6
OFFSETS = 1 << OFFSET_BITS  # turns in the table
STEP = 8  # OFFSETS = STEP²: the table is made of the products of STEP turns by STEP others
SLOTS = 16  # turns of multiples of OFFSETS that are kept; a power of two
WIDEST = 16  # lanes; a turn's rows are filled up to so many

ONE = np.float32(1)
NEVER = -(2**62)  # what no rotation is

# Where a turner holds what, in bytes. The aim is a word for whoever uses the turner.
PAIRS, SPEEDS, FACTORS, FACTOR_STEP, MAGNITUDE, IS_READY, CURRENT, AIM, TAGS = range(0, 72, 8)
FLOATS = 192


def turn_bytes(pairs: int) -> int:
    """Size of a turn."""
    return 8 * (-(-pairs // WIDEST) * WIDEST)


def turner_bytes(pairs: int) -> int:
    """Size of a turner: its words, the speeds, the table, the kept turns, and the current one."""
    return FLOATS + turn_bytes(pairs) * (1 + OFFSETS + SLOTS + 1)


@helper
def start_turner(turner, pairs, speeds, factors, factor_step, magnitude):
    """Make a turner ready; nothing is computed before the first row turns.

    Args: pairs in a row; at `speeds` their angles at position 1, float64; at `factors` (0: none) float32 numbers,
          `factor_step` bytes apart, that divide them; magnitude float32, on cosines and sines.
    """
    store_integer(turner + PAIRS, "i64", pairs)
    store_integer(turner + SPEEDS, "i64", speeds)
    store_integer(turner + FACTORS, "i64", factors)
    store_integer(turner + FACTOR_STEP, "i64", factor_step)
    store_one(turner + MAGNITUDE, "f32", magnitude)
    store_integer(turner + IS_READY, "i64", 0)
    store_integer(turner + CURRENT, "i64", NEVER)
    for slot in range(SLOTS):
        store_integer(turner + TAGS + 8 * slot, "i64", NEVER)


@helper
def sines_at(turner):
    """Bytes from a turn's cosines to its sines."""
    return (load_integer(turner + PAIRS, "i64") + WIDEST - 1) // WIDEST * WIDEST * 4


@helper
def offset_turn(turner, offset):
    """Address of the turn of 0 … OFFSETS - 1 positions, without magnitude."""
    return turner + FLOATS + 2 * sines_at(turner) * (1 + offset)


@helper
def magnitude_of(turner):
    return load_one(turner + MAGNITUDE, "f32")


def turn_multiplier(lanes):
    """A helper: the turn at `target` becomes the product of the turns at `x` and `y`."""

    @helper
    def multiply(x, y, sines, target):
        for i in range(0, sines, 4 * lanes):
            a, b = load_f32(x + i, "f32", lanes), load_f32(x + sines + i, "f32", lanes)
            c, s = load_f32(y + i, "f32", lanes), load_f32(y + sines + i, "f32", lanes)
            store_f32(target + i, "f32", a * c - b * s)
            store_f32(target + sines + i, "f32", a * s + b * c)

    return multiply


def turn_keeper(lanes):
    """A helper: address of the turn of a multiple of OFFSETS positions; it is kept until its slot is needed."""
    table, multiply = table_of(lanes), turn_multiplier(lanes)

    @helper
    def prepare(turner, pairs, sines, speeds):
        factors, factor_step = load_integer(turner + FACTORS, "i64"), load_integer(turner + FACTOR_STEP, "i64")
        load_speeds(speeds, load_integer(turner + SPEEDS, "i64"), factors, factor_step, pairs)
        for i in range(2 * STEP - 1):
            offset = i if i < STEP else (i - STEP + 1) * STEP
            place = offset_turn(turner, offset)
            table(offset, speeds, pairs, ONE, place, place + sines)
        for offset in range(STEP, OFFSETS):
            if offset % STEP:
                low, high = offset_turn(turner, offset % STEP), offset_turn(turner, offset - offset % STEP)
                multiply(high, low, sines, offset_turn(turner, offset))

    @helper
    def keep(turner, block):
        pairs, sines, speeds = load_integer(turner + PAIRS, "i64"), sines_at(turner), turner + FLOATS
        tag, kept = turner + TAGS + 8 * (block & (SLOTS - 1)), offset_turn(turner, OFFSETS + (block & (SLOTS - 1)))
        if load_integer(tag, "i64") != block:
            if load_integer(turner + IS_READY, "i64") == 0:
                prepare(turner, pairs, sines, speeds)
                store_integer(turner + IS_READY, "i64", 1)
            table(block * OFFSETS, speeds, pairs, magnitude_of(turner), kept, kept + sines)
            store_integer(tag, "i64", block)
        return kept

    return keep


def turn_maker(lanes):
    """A helper: write the turn of a rotation to `target`."""
    keep, multiply = turn_keeper(lanes), turn_multiplier(lanes)

    @helper
    def make_turn(turner, rotation, target):
        kept = keep(turner, rotation >> OFFSET_BITS)
        multiply(kept, offset_turn(turner, rotation & (OFFSETS - 1)), sines_at(turner), target)

    return make_turn


def current_turn(lanes):
    """A helper: address of the turn of a rotation, which stays there until another is asked for."""
    make_turn = turn_maker(lanes)

    @helper
    def current(turner, rotation):
        place = offset_turn(turner, OFFSETS + SLOTS)
        if load_integer(turner + CURRENT, "i64") != rotation:
            make_turn(turner, rotation, place)
            store_integer(turner + CURRENT, "i64", rotation)
        return place

    return current


def row_turner(lanes, mode, whole):
    """A helper: turn a float32 row, given the address of the first element that turns, by a number of positions.

    Args: whole: whether pairs make whole vectors; that takes fewer steps.
    """
    current, turn = current_turn(lanes), (turn_neighbours if mode == "normal" else turn_halves)(lanes)
    keep, turn_by_two = turn_keeper(lanes), turn_by_product(lanes, mode)

    @helper
    def turn_row(turner, row, rotation):
        if rotation == 0 and magnitude_of(turner) == ONE:
            return
        pairs, sines = load_integer(turner + PAIRS, "i64"), sines_at(turner)
        if whole:
            kept = keep(turner, rotation >> OFFSET_BITS)
            turn_by_two(row, kept, offset_turn(turner, rotation & (OFFSETS - 1)), sines, pairs)
        else:
            cosines, upper = current(turner, rotation), row + 4 * pairs
            turn(row, upper, FLOAT32, row, upper, FLOAT32, cosines, cosines + sines, pairs)

    return turn_row


def turn_by_product(lanes, mode):
    """A helper: turn a float32 row of whole vectors of pairs by the turn at `x` and then by that at `y`."""
    neighbours = mode == "normal"

    @helper
    def turn(row, x, y, sines, pairs):
        for i in range(0, 4 * pairs, 4 * lanes):
            c, s = load_f32(x + i, "f32", lanes), load_f32(x + sines + i, "f32", lanes)
            d, t = load_f32(y + i, "f32", lanes), load_f32(y + sines + i, "f32", lanes)
            c, s = c * d - s * t, c * t + s * d
            lower = row + 2 * i if neighbours else row + i
            upper = lower + 4 * lanes if neighbours else lower + 4 * pairs
            u, v = load_f32(lower, "f32", lanes), load_f32(upper, "f32", lanes)
            if neighbours:
                u, v = evens(u, v), odds(u, v)
            u, v = u * c - v * s, u * s + v * c
            if neighbours:
                u, v = lower_pairs(u, v), upper_pairs(u, v)
            store_f32(lower, "f32", u)
            store_f32(upper, "f32", v)

    return turn


def turn_apart(lanes, mode):
    """A helper: turn a float32 row of whole vectors of pairs, from `source` to `target`, and there put pairs apart.

    The first elements of all pairs come to stand before the second ones, as they always do in mode "neox".
    """
    neighbours = mode == "normal"

    @helper
    def turn(target, source, cosines, sines, pairs):
        for i in range(0, 4 * pairs, 4 * lanes):
            if neighbours:
                u, v = load_f32(source + 2 * i, "f32", lanes), load_f32(source + 2 * i + 4 * lanes, "f32", lanes)
                a, b = evens(u, v), odds(u, v)
            else:
                a, b = load_f32(source + i, "f32", lanes), load_f32(source + 4 * pairs + i, "f32", lanes)
            c, s = load_f32(cosines + i, "f32", lanes), load_f32(sines + i, "f32", lanes)
            store_f32(target + i, "f32", a * c - b * s)
            store_f32(target + 4 * pairs + i, "f32", a * s + b * c)

    return turn
