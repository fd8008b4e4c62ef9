"""Few tokens' products with their experts, and their weighted sums: y[t] = Σ weights[t, u] · (w[ids[t, u]] · x[t, u]).

A thread claims some rows and takes them of all experts that are used. It keeps their products aside until it has all,
and adds them up in rank order: y is the same, bit for bit, as if product and sum were two calls, and no expert's result
is written to memory.

Tensors are y, w, the weights and ids. Extras are, past those of a product, how many rows' products are kept at a time
and where, from a thread's scratch memory on, and the bytes between tokens' and between ranks' weights.
"""

from __future__ import annotations

import numpy as np

from graphrt.backends.cpu.args import address, claim, size, stride, word
from graphrt.backends.cpu.grouping import (
    COUNTER,
    IDS,
    WORKSPACE,
    X_ROW,
    W,
    X,
    Y,
    column_word,
    columns,
    group_count,
    scratch,
)
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.jit import Kernel
from graphrt.backends.cpu.matvec import rows_multiplier
from graphrt.backends.cpu.memory import load_f32, load_integer, load_one, store_f32_first
from graphrt.backends.cpu.portions import GRAIN, MOST, portion_start
from graphrt.backends.cpu.row_products import rows_of
from graphrt.backends.cpu.simd import fma, splat
from graphrt.tensor import Tensor

KEPT_ROWS, KEPT, BETWEEN_TOKENS, BETWEEN_RANKS = (WORKSPACE + i for i in range(8, 12))
KEPT_BYTES = 1 << 18  # of one thread, about: they should stay in its cache
ZERO = np.float32(0)


def kept_rows(product: Tensor) -> int:
    """Rows whose products with all columns are kept at a time."""
    return min(MOST, max(1, KEPT_BYTES // (4 * max(1, columns(product))) // GRAIN) * GRAIN)


def kept_bytes(product: Tensor) -> int:
    """Bytes of the products that are kept."""
    return 4 * kept_rows(product) * columns(product)


def expert_sum_columns(dtype: str, dense: bool, lanes: int) -> Kernel:
    """Native: all of y. An id that is no expert's makes its token's row NaN."""
    multiply_rows, add_up = rows_multiplier(rows_of(dtype, dense), _place_aside), _summation(lanes)

    def run(args, ith, nth):
        height, groups, most = size(args, W, 2), group_count(args), word(args, KEPT_ROWS)
        buffer, kept = scratch(args, ith), scratch(args, ith) + word(args, KEPT)
        number = claim(word(args, COUNTER), 1)
        row, end = portion_start(height, number, nth), portion_start(height, number + 1, nth)
        while row < height:
            number = claim(word(args, COUNTER), 1)
            next_row = portion_start(height, number, nth)
            end = min(end, height)
            while row < end:
                count = min(most, end - row)
                following = row + count if row + count < end else next_row
                for group in range(groups):
                    after = following if following < height else groups * height
                    if group + 1 < groups:
                        after = (group + 1) * height + row
                    multiply_rows(args, group * height + row, count, after, buffer, kept)
                add_up(args, row, count, kept)
                row += count
            row, end = next_row, portion_start(height, number + 1, nth)

    return run


@helper
def _place_aside(args, column, number, base):
    return base + 4 * word(args, KEPT_ROWS) * column_word(args, column, X_ROW)


def _summation(lanes: int):
    """A helper: `count` rows of y, from what is kept of all columns."""

    @helper
    def add_up(args, row, count, kept):
        used, pitch = size(args, IDS, 3), 4 * word(args, KEPT_ROWS)
        for token in range(size(args, IDS, 2)):
            y, products = address(args, Y) + token * stride(args, Y, 2) + 4 * row, kept + token * used * pitch
            for i in range(0, count, lanes):
                total = splat(ZERO, lanes)
                for rank in range(used):
                    product = load_f32(products + rank * pitch + 4 * i, "f32", lanes)
                    total = fma(product, splat(_share_of(args, token, rank), lanes), total)
                store_f32_first(y + 4 * i, "f32", total, count - i)

    return add_up


@helper
def _share_of(args, token, rank):
    """The weight of a token's expert of that rank; NaN where there is no such expert."""
    expert = load_integer(address(args, IDS) + token * stride(args, IDS, 2) + rank * stride(args, IDS, 3), "i32")
    share = load_one(address(args, X) + token * word(args, BETWEEN_TOKENS) + rank * word(args, BETWEEN_RANKS), "f32")
    return share if 0 <= expert < size(args, W, 1) else np.float32(np.nan)
