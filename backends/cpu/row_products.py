"""Products of rows of weights with one, two or four columns of x: a row, or 16 interleaved ones, at a time.

Rows as files have them are multiplied one by one, with a sum over lanes at each one's end; a unit of a row is unpacked
once for all columns. What a unit is, and how it is multiplied, depends on the dtype (see vecdot.py); so does the way of
interleaved rows, whose lanes are rows (see interleaved_dot.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from graphrt import dtypes
from graphrt.backends.cpu.codes import prefetch
from graphrt.backends.cpu.dot import join, pick
from graphrt.backends.cpu.grouping import X_ROW, column_word, prepared
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.interleaved_dot import AHEAD, multiply_interleaved
from graphrt.backends.cpu.memory import store_f32, store_one
from graphrt.backends.cpu.prepare import UNITS, row_bytes
from graphrt.backends.cpu.simd import lane, reduce_add, splat
from graphrt.backends.cpu.vecdot import Units, units_of

AT_ONCE = 4  # columns
NEAR_BYTES = 40 << 10  # of prepared x that stay in the nearest cache while rows are read
MANY_INTERLEAVED, MANY_OF_OTHERS = {"q3_k": 10, "q6_k": 10}, 20  # as Rows.many


@dataclass(frozen=True)
class Rows:
    """How rows of one weight dtype are multiplied with few columns.

    Args:
        form: of the prepared x.
        at_once: rows that one call takes, whose products it writes side by side.
        one, two, four: helpers (w, step, width, x …, end, following, buffer, y …), with as many x and y as columns;
            memory is asked for AHEAD of the rows, up to `end`, and then what lies at `following`.
        many, many_wide: as of Units.
    """

    form: str
    at_once: int
    one: Any
    two: Any
    four: Any
    many: int
    many_wide: int

    def many_from(self, width: int) -> int:
        """Columns from which the way for many columns is faster, for rows of so many elements."""
        return self.many if AT_ONCE * row_bytes(self.form, width) <= NEAR_BYTES else self.many_wide


@cache
def rows_of(name: str, dense: bool) -> Rows:
    """The way to multiply rows of the dtype of that name; `dense` says whether a row's elements lie side by side."""
    dtype = dtypes.get(name)
    if dtype.rows > 1:
        many = MANY_INTERLEAVED.get(dtype.plain.name, MANY_OF_OTHERS)
        return Rows("few", dtype.rows, *_interleaved(name), many=many, many_wide=many)
    units = units_of(name, dense)
    by_columns = [kernel(units, dtype.block) for kernel in (_one, _two, _four)]
    return Rows(units.form, 1, *by_columns, many=units.many, many_wide=units.many_wide)


def columns_multiplier(rows: Rows, place):
    """A helper that multiplies rows with `count` columns, up to AT_ONCE, from `column` on.

    Args:
        place: helper (args, column, number, base) -> where the products with that column go, the number-th of them.
    """
    one, two, four = rows.one, rows.two, rows.four

    @helper
    def multiply(args, w, step, width, column, count, x_pitch, end, following, buffer, base):
        x0, y0 = prepared_row(args, column, x_pitch), place(args, column, 0, base)
        if count == 1:
            one(w, step, width, x0, end, following, buffer, y0)
            return
        x1, y1 = prepared_row(args, column + 1, x_pitch), place(args, column + 1, 1, base)
        if count == 2:
            two(w, step, width, x0, x1, end, following, buffer, y0, y1)
            return
        x2, y2 = prepared_row(args, column + 2, x_pitch), place(args, column + 2, 2, base)
        last = count - 1  # of three columns the last is taken twice: that is faster than two and one
        x3, y3 = prepared_row(args, column + last, x_pitch), place(args, column + last, last, base)
        four(w, step, width, x0, x1, x2, x3, end, following, buffer, y0, y1, y2, y3)

    return multiply


@helper
def prepared_row(args, column, x_pitch):
    """Address of the prepared row of x of a column."""
    return prepared(args) + column_word(args, column, X_ROW) * x_pitch


def pitch_of_prepared(form: str):
    """A helper: the bytes from one prepared row of x to the next, for rows of so many elements."""
    per_unit, nbytes = UNITS[form]

    @helper
    def of(width):
        return (width + per_unit - 1) // per_unit * nbytes

    return of


# ---- interleaved rows ------------------------------------------------------------------------------------------------


def _interleaved(name: str) -> tuple[Any, Any, Any]:
    block = dtypes.get(name).block

    @helper
    def one(w, step, width, x, end, following, buffer, y):
        sums = multiply_interleaved(w, width // block, (x,), end, following, name)
        store_f32(y, "f32", sums[0])

    @helper
    def two(w, step, width, x0, x1, end, following, buffer, y0, y1):
        sums = multiply_interleaved(w, width // block, (x0, x1), end, following, name)
        store_f32(y0, "f32", sums[0])
        store_f32(y1, "f32", sums[1])

    @helper
    def four(w, step, width, x0, x1, x2, x3, end, following, buffer, y0, y1, y2, y3):
        sums = multiply_interleaved(w, width // block, (x0, x1, x2, x3), end, following, name)
        store_f32(y0, "f32", sums[0])
        store_f32(y1, "f32", sums[1])
        store_f32(y2, "f32", sums[2])
        store_f32(y3, "f32", sums[3])

    return one, two, four


# ---- rows one by one -------------------------------------------------------------------------------------------------


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
def distance_ahead(w, end, following):
    """How far from a row lies what is to be asked for: before the end of those at hand, or among those to follow."""
    return AHEAD if w + AHEAD < end else AHEAD + following - end


@helper
def prefetch_all(start, nbytes):
    """Ask for all cache lines of some memory, which need not be valid."""
    for i in range(0, nbytes, 64):
        prefetch(start + i)


def _one(units: Units, block: int):
    load, load_rest, add, elements = units.load, units.load_rest, units.add, units.elements
    x_unit = UNITS[units.form][1] * elements // UNITS[units.form][0]
    blocks, nbytes = elements // block, units.nbytes

    @helper
    def one(w, step, width, x, end, following, buffer, y):
        whole, rest, unit = width // elements, width % elements, blocks * step
        ahead = distance_ahead(w, end, following)
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
        store_one(y, "f32", reduce_add((t0 + t1) + (t2 + t3)))

    return one


def _two(units: Units, block: int):
    load, load_rest, add, elements = units.load, units.load_rest, units.add, units.elements
    x_unit = UNITS[units.form][1] * elements // UNITS[units.form][0]
    blocks, nbytes = elements // block, units.nbytes

    @helper
    def two(w, step, width, x0, x1, end, following, buffer, y0, y1):
        whole, rest, unit = width // elements, width % elements, blocks * step
        ahead = distance_ahead(w, end, following)
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
        store_one(y0, "f32", reduce_add(t0 + t2))
        store_one(y1, "f32", reduce_add(t1 + t3))

    return two


def _four(units: Units, block: int):
    load, load_rest, add, elements = units.load, units.load_rest, units.add, units.elements
    x_unit = UNITS[units.form][1] * elements // UNITS[units.form][0]
    blocks, nbytes = elements // block, units.nbytes

    @helper
    def four(w, step, width, x0, x1, x2, x3, end, following, buffer, y0, y1, y2, y3):
        whole, rest, unit = width // elements, width % elements, blocks * step
        ahead = distance_ahead(w, end, following)
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
        store_one(y0, "f32", lane(sums, 0))
        store_one(y1, "f32", lane(sums, 1))
        store_one(y2, "f32", lane(sums, 2))
        store_one(y3, "f32", lane(sums, 3))

    return four
