"""Products with few columns: rows of weights are read once, straight from their own layout.

Rows are taken one by one: memory is then read in one ascending stream, which the processor prefetches best. A thread
claims its next rows before it begins with those at hand, and asks for them at their end: without that every portion
would begin by waiting for memory. A unit of a row is unpacked once for up to four columns.
"""

from __future__ import annotations

import numpy as np

from graphrt import dtypes
from graphrt.backends.cpu.args import claim, size, stride, word
from graphrt.backends.cpu.codes import prefetch
from graphrt.backends.cpu.dot import join, pick
from graphrt.backends.cpu.grouping import (
    COUNTER,
    FIRST,
    LAST,
    MATRIX,
    X_ROW,
    Y_ADDRESS,
    W,
    column_word,
    group_count,
    group_word,
    matrix_address,
    prepared,
    scratch,
)
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.jit import Kernel
from graphrt.backends.cpu.memory import store_one
from graphrt.backends.cpu.portions import portion_start
from graphrt.backends.cpu.prepare import UNITS
from graphrt.backends.cpu.simd import lane, reduce_add, splat
from graphrt.backends.cpu.vecdot import Units, units_of

AHEAD = 8192  # bytes: measured; the processor's own prefetching, which stops at pages, leaves 5 to 25 % to gain


def mul_mat_columns(dtype: str, dense: bool) -> Kernel:
    """Native: y for every column, over x prepared in the form that the weights' dtype wants."""
    units = units_of(dtype, dense)
    per_unit, x_unit_bytes = UNITS[units.form]
    block = dtypes.get(dtype).block
    one, two, four = _one_column(units, block), _two_columns(units, block), _four_columns(units, block)

    def run(args, ith, nth):
        height, width = size(args, W, 2), size(args, W, 3)
        pitch, step = stride(args, W, 2), stride(args, W, 3)
        x_pitch = (width + per_unit - 1) // per_unit * x_unit_bytes
        total = group_count(args) * height
        buffer = scratch(args, ith)
        number = claim(word(args, COUNTER), 1)
        row, end = portion_start(total, number, nth), portion_start(total, number + 1, nth)
        while row < total:
            number = claim(word(args, COUNTER), 1)
            next_row = portion_start(total, number, nth)
            while row < min(end, total):
                group, count = row // height, rows_within(row, min(end, total), height)
                weights = weights_address(args, row, height, pitch)
                end_address = weights + count * pitch
                following = row + count if row + count < end else next_row
                next_address = weights_address(args, following, height, pitch) if following < total else end_address
                first, last = group_word(args, group, FIRST), group_word(args, group, LAST)
                for y_row in range(row % height, row % height + count):
                    ahead = distance_ahead(weights, pitch, end_address, next_address)
                    column = first
                    while column + 4 <= last:
                        four(args, weights, step, width, column, x_pitch, y_row, ahead, buffer)
                        column += 4
                    if column + 2 <= last:
                        two(args, weights, step, width, column, x_pitch, y_row, ahead, buffer)
                        column += 2
                    if column < last:
                        one(args, weights, step, width, column, x_pitch, y_row, ahead, buffer)
                    weights += pitch
                row += count
            row, end = next_row, portion_start(total, number + 1, nth)

    return run


@helper
def rows_within(row, end, height):
    """Rows from `row` up to `end`, of all groups' rows counted through, that are in the same group."""
    return min(end - row, height - row % height)


@helper
def weights_address(args, row, height, pitch):
    """Address of a row of weights, of all groups' rows counted through."""
    return matrix_address(args, group_word(args, row // height, MATRIX)) + row % height * pitch


@helper
def distance_ahead(weights, pitch, end, following):
    """How far from a row lies what is to be asked for: before the end of the rows at hand, or among those to follow."""
    return AHEAD if weights + pitch + AHEAD <= end else AHEAD + following - end


@helper
def prepared_row(args, column, x_pitch):
    """Address of the prepared row of x of a column."""
    return prepared(args) + column_word(args, column, X_ROW) * x_pitch


@helper
def _store(args, column, y_row, total):
    store_one(column_word(args, column, Y_ADDRESS) + 4 * y_row, "f32", total)


_LOW_8 = (0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
_HIGH_8 = (8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31)
_LOW_4 = (0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27)
_HIGH_4 = (4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31)
_LOW_2, _HIGH_2 = (0, 1, 4, 5, 8, 9, 12, 13), (2, 3, 6, 7, 10, 11, 14, 15)
_EVEN, _ODD = (0, 2, 4, 6), (1, 3, 5, 7)


@helper
def sums_of_four(a, b, c, d):
    """The sums of four vectors' 16 lanes, as one vector."""
    ab, cd = join(a, b), join(c, d)
    halves = join(pick(ab, _LOW_8) + pick(ab, _HIGH_8), pick(cd, _LOW_8) + pick(cd, _HIGH_8))
    quarters = pick(halves, _LOW_4) + pick(halves, _HIGH_4)
    pairs = pick(quarters, _LOW_2) + pick(quarters, _HIGH_2)
    return pick(pairs, _EVEN) + pick(pairs, _ODD)


@helper
def prefetch_all(start, nbytes):
    """Ask for all cache lines of some memory, which need not be valid."""
    for i in range(0, nbytes, 64):
        prefetch(start + i)


def column_dot(units: Units, block: int):
    """A helper: the product of a row of weights and a prepared row of x; asks for the memory `ahead` of the row."""
    load, load_rest, add, elements = units.load, units.load_rest, units.add, units.elements
    x_unit = UNITS[units.form][1] * elements // UNITS[units.form][0]
    blocks, nbytes = elements // block, units.nbytes

    @helper
    def dot(w, step, width, x, ahead, buffer):
        whole, rest, unit = width // elements, width % elements, blocks * step
        t0 = splat(np.float32(0), 16)
        t1, t2, t3 = t0, t0, t0
        for _ in range(whole // 4):
            t0 = add(load(w, step, buffer), x, t0)
            t1 = add(load(w + unit, step, buffer), x + x_unit, t1)
            t2 = add(load(w + 2 * unit, step, buffer), x + 2 * x_unit, t2)
            t3 = add(load(w + 3 * unit, step, buffer), x + 3 * x_unit, t3)
            prefetch_all(w + ahead, 4 * nbytes)
            w, x = w + 4 * unit, x + 4 * x_unit
        for _ in range(whole % 4):
            t0 = add(load(w, step, buffer), x, t0)
            prefetch_all(w + ahead, nbytes)
            w, x = w + unit, x + x_unit
        if rest > 0:
            t1 = add(load_rest(w, step, rest, buffer), x, t1)
        return reduce_add((t0 + t1) + (t2 + t3))

    return dot


def _one_column(units: Units, block: int):
    dot = column_dot(units, block)

    @helper
    def one(args, w, step, width, column, x_pitch, y_row, ahead, buffer):
        _store(args, column, y_row, dot(w, step, width, prepared_row(args, column, x_pitch), ahead, buffer))

    return one


def _two_columns(units: Units, block: int):
    load, load_rest, add, elements = units.load, units.load_rest, units.add, units.elements
    x_unit = UNITS[units.form][1] * elements // UNITS[units.form][0]
    blocks, nbytes = elements // block, units.nbytes

    @helper
    def two(args, w, step, width, column, x_pitch, y_row, ahead, buffer):
        whole, rest, unit = width // elements, width % elements, blocks * step
        x0, x1 = prepared_row(args, column, x_pitch), prepared_row(args, column + 1, x_pitch)
        t0 = splat(np.float32(0), 16)
        t1, t2, t3 = t0, t0, t0
        for _ in range(whole // 2):
            weights = load(w, step, buffer)
            t0, t1 = add(weights, x0, t0), add(weights, x1, t1)
            weights = load(w + unit, step, buffer)
            t2, t3 = add(weights, x0 + x_unit, t2), add(weights, x1 + x_unit, t3)
            prefetch_all(w + ahead, 2 * nbytes)
            w, x0, x1 = w + 2 * unit, x0 + 2 * x_unit, x1 + 2 * x_unit
        if whole % 2 > 0:
            weights = load(w, step, buffer)
            t0, t1 = add(weights, x0, t0), add(weights, x1, t1)
            w, x0, x1 = w + unit, x0 + x_unit, x1 + x_unit
        if rest > 0:
            weights = load_rest(w, step, rest, buffer)
            t2, t3 = add(weights, x0, t2), add(weights, x1, t3)
        _store(args, column, y_row, reduce_add(t0 + t2))
        _store(args, column + 1, y_row, reduce_add(t1 + t3))

    return two


def _four_columns(units: Units, block: int):
    load, load_rest, add, elements = units.load, units.load_rest, units.add, units.elements
    x_unit = UNITS[units.form][1] * elements // UNITS[units.form][0]
    blocks, nbytes = elements // block, units.nbytes

    @helper
    def four(args, w, step, width, column, x_pitch, y_row, ahead, buffer):
        whole, rest, unit = width // elements, width % elements, blocks * step
        x0, x1 = prepared_row(args, column, x_pitch), prepared_row(args, column + 1, x_pitch)
        x2, x3 = prepared_row(args, column + 2, x_pitch), prepared_row(args, column + 3, x_pitch)
        t0 = splat(np.float32(0), 16)
        t1, t2, t3 = t0, t0, t0
        for _ in range(whole):
            weights = load(w, step, buffer)
            t0, t1, t2, t3 = add(weights, x0, t0), add(weights, x1, t1), add(weights, x2, t2), add(weights, x3, t3)
            prefetch_all(w + ahead, nbytes)
            w += unit
            x0, x1, x2, x3 = x0 + x_unit, x1 + x_unit, x2 + x_unit, x3 + x_unit
        if rest > 0:
            weights = load_rest(w, step, rest, buffer)
            t0, t1, t2, t3 = add(weights, x0, t0), add(weights, x1, t1), add(weights, x2, t2), add(weights, x3, t3)
        sums = sums_of_four(t0, t1, t2, t3)
        _store(args, column, y_row, lane(sums, 0))
        _store(args, column + 1, y_row, lane(sums, 1))
        _store(args, column + 2, y_row, lane(sums, 2))
        _store(args, column + 3, y_row, lane(sums, 3))

    return four
