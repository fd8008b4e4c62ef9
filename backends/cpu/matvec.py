"""Products with few columns: rows of weights are read once, straight from their own layout.

Rows are taken one by one: memory is then read in one ascending stream, which the processor prefetches best.
"""

from __future__ import annotations

import numpy as np

from graphrt import dtypes
from graphrt.backends.cpu.args import claim, size, stride, word
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
    x_unit = UNITS[units.form][1] * elements // UNITS[units.form][0]
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
        unit = blocks * step
        zero = splat(np.float32(0), 16)
        item = claim(word(args, COUNTER), 1)
        while item < total:
            group, row = item // chunks, item % chunks * CHUNK
            end = min(row + CHUNK, height)
            weights = matrix_address(args, group_word(args, group, MATRIX)) + row * pitch
            first, last = group_word(args, group, FIRST), group_word(args, group, LAST)
            for y_row in range(row, end):
                for column in range(first, last):
                    x = prepared(args) + column_word(args, column, X_ROW) * x_pitch
                    w = weights
                    t0, t1, t2, t3 = zero, zero, zero, zero
                    for _ in range(whole // 4):
                        t0 = add(w, step, x, t0, buffer)
                        t1 = add(w + unit, step, x + x_unit, t1, buffer)
                        t2 = add(w + 2 * unit, step, x + 2 * x_unit, t2, buffer)
                        t3 = add(w + 3 * unit, step, x + 3 * x_unit, t3, buffer)
                        w += 4 * unit
                        x += 4 * x_unit
                    for _ in range(whole % 4):
                        t0 = add(w, step, x, t0, buffer)
                        w += unit
                        x += x_unit
                    if rest > 0:
                        t1 = add_rest(w, step, x, t1, rest, buffer)
                    store_one(
                        column_word(args, column, Y_ADDRESS) + 4 * y_row, "f32", reduce_add((t0 + t1) + (t2 + t3))
                    )
                weights += pitch
            item = claim(word(args, COUNTER), 1)

    return run
