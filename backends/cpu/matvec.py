"""Products with few columns: rows of weights are read once, straight from their own layout, four at a time."""

from __future__ import annotations

import numpy as np

from graphrt import dtypes
from graphrt.backends.cpu.args import claim, size, stride, word
from graphrt.backends.cpu.grouping import (
    COUNTER,
    FIRST,
    LAST,
    MATRIX,
    W,
    X_ROW,
    Y_ADDRESS,
    column_word,
    group_count,
    group_word,
    matrix_address,
    prepared,
    scratch,
)
from graphrt.backends.cpu.jit import Kernel
from graphrt.backends.cpu.memory import store_one
from graphrt.backends.cpu.prepare import UNITS
from graphrt.backends.cpu.simd import reduce_add, splat
from graphrt.backends.cpu.vecdot import units_of

CHUNK = 32  # rows that a thread claims at a time


def mul_mat_columns(dtype: str, dense: bool) -> Kernel:
    """Native: y for every column, over x prepared in the form that the weights' dtype wants."""
    units = units_of(dtype, dense)
    add, add_rest, elements = units.add, units.add_rest, units.elements
    unit_bytes = UNITS[units.form][1] * elements // UNITS[units.form][0]
    blocks = elements // dtypes.get(dtype).block
    per_unit, x_unit_bytes = UNITS[units.form]

    def run(args, ith, nth):
        height, width = size(args, W, 2), size(args, W, 3)
        pitch, step = stride(args, W, 2), stride(args, W, 3)
        x_pitch = (width + per_unit - 1) // per_unit * x_unit_bytes
        whole, rest = width // elements, width % elements
        chunks = (height + CHUNK - 1) // CHUNK
        total = group_count(args) * chunks
        buffer = scratch(args, ith)
        zero = splat(np.float32(0), 16)
        item = claim(word(args, COUNTER), 1)
        while item < total:
            group, row = item // chunks, item % chunks * CHUNK
            end = min(row + CHUNK, height)
            weights = matrix_address(args, group_word(args, group, MATRIX)) + row * pitch
            first, last = group_word(args, group, FIRST), group_word(args, group, LAST)
            while row < end:
                # The last rows are taken four at a time too: those past the end repeat the last one.
                w0 = weights
                w1 = weights + min(1, end - 1 - row) * pitch
                w2 = weights + min(2, end - 1 - row) * pitch
                w3 = weights + min(3, end - 1 - row) * pitch
                for column in range(first, last):
                    x = prepared(args) + column_word(args, column, X_ROW) * x_pitch
                    y = column_word(args, column, Y_ADDRESS) + 4 * row
                    t0, t1, t2, t3 = zero, zero, zero, zero
                    at = 0
                    for _ in range(whole):
                        t0 = add(w0 + at, step, x, t0, buffer)
                        t1 = add(w1 + at, step, x, t1, buffer)
                        t2 = add(w2 + at, step, x, t2, buffer)
                        t3 = add(w3 + at, step, x, t3, buffer)
                        at += blocks * step
                        x += unit_bytes
                    if rest > 0:
                        t0 = add_rest(w0 + at, step, x, t0, rest, buffer)
                        t1 = add_rest(w1 + at, step, x, t1, rest, buffer)
                        t2 = add_rest(w2 + at, step, x, t2, rest, buffer)
                        t3 = add_rest(w3 + at, step, x, t3, rest, buffer)
                    store_one(y, "f32", reduce_add(t0))
                    if row + 1 < end:
                        store_one(y + 4, "f32", reduce_add(t1))
                    if row + 2 < end:
                        store_one(y + 8, "f32", reduce_add(t2))
                    if row + 3 < end:
                        store_one(y + 12, "f32", reduce_add(t3))
                row += 4
                weights += 4 * pitch
            item = claim(word(args, COUNTER), 1)

    return run
