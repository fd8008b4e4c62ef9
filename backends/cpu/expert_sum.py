"""One token's products with its experts, and their weighted sum, in one pass: y = Σ weights[u] · (w[ids[u]] · x[u]).

A thread claims some rows and takes them of all experts, in rank order, so that no expert's result is written to memory.
"""

from __future__ import annotations

import numpy as np

from graphrt.backends.cpu.args import address, claim, size, stride, word
from graphrt.backends.cpu.elements import stack_floats
from graphrt.backends.cpu.grouping import COUNTER, IDS, WORKSPACE, W, X, Y, matrix_address, prepared, scratch
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.jit import Kernel
from graphrt.backends.cpu.memory import load_f32, load_integer, load_one, store_f32, store_f32_first
from graphrt.backends.cpu.portions import MOST, portion_start
from graphrt.backends.cpu.row_products import pitch_of_prepared, rows_of
from graphrt.backends.cpu.simd import fma, splat

BETWEEN_WEIGHTS = WORKSPACE + 8  # bytes from one rank's weight to the next; tensor X is the weights
ZERO = np.float32(0)


def expert_sum_column(dtype: str, dense: bool, lanes: int) -> Kernel:
    """Native: the one row of y. An id that is no expert's makes it NaN."""
    rows = rows_of(dtype, dense)
    multiply, row_bytes, at_once = rows.one, pitch_of_prepared(rows.form), rows.at_once

    def run(args, ith, nth):
        height, width, used = size(args, W, 2), size(args, W, 3), size(args, IDS, 3)
        pitch, step, x_pitch = stride(args, W, 2), stride(args, W, 3), row_bytes(width)
        buffer, products, sums = scratch(args, ith), stack_floats(MOST), stack_floats(MOST)
        number = claim(word(args, COUNTER), 1)
        row, row_end = portion_start(height, number, nth), portion_start(height, number + 1, nth)
        while row < height:
            number = claim(word(args, COUNTER), 1)
            next_row = portion_start(height, number, nth)
            count = min(row_end, height) - row
            for i in range(0, count, lanes):
                store_f32(sums + 4 * i, "f32", splat(ZERO, lanes))
            for rank in range(used):
                weights = expert_address(args, rank) + row * pitch
                end = weights + count * pitch
                if rank + 1 < used:
                    next_rows = expert_address(args, rank + 1) + row * pitch
                else:
                    next_rows = expert_address(args, 0) + next_row * pitch if next_row < height else end
                x = prepared(args) + rank * x_pitch
                for i in range(0, count, at_once):
                    multiply(weights + i * pitch, step, width, x, end, next_rows, buffer, products + 4 * i)
                share = splat(share_of(args, rank), lanes)
                for i in range(0, count, lanes):
                    v = fma(load_f32(products + 4 * i, "f32", lanes), share, load_f32(sums + 4 * i, "f32", lanes))
                    store_f32(sums + 4 * i, "f32", v)
            for i in range(0, count, lanes):
                y = address(args, Y) + 4 * (row + i)
                store_f32_first(y, "f32", load_f32(sums + 4 * i, "f32", lanes), count - i)
            row, row_end = next_row, portion_start(height, number + 1, nth)

    return run


@helper
def expert_of(args, rank):
    return load_integer(address(args, IDS) + rank * stride(args, IDS, 3), "i32")


@helper
def expert_address(args, rank):
    """Address of the matrix of the expert of that rank; of the first one where there is no such expert."""
    expert = expert_of(args, rank)
    return matrix_address(args, expert if 0 <= expert < size(args, W, 1) else 0)


@helper
def share_of(args, rank):
    """The weight of the expert of that rank; NaN where there is no such expert."""
    expert = expert_of(args, rank)
    share = load_one(address(args, X) + rank * word(args, BETWEEN_WEIGHTS), "f32")
    return share if 0 <= expert < size(args, W, 1) else np.float32(np.nan)
