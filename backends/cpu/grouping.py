"""Matrix products by groups: the columns that share one weight matrix are found first, and then multiplied together.

A column is one row of x and the row of y that it yields. mul_mat has a group for each matrix in w's batch, mul_mat_id
one for each expert that some token uses; from here on both are the same. The tables stand at the workspace's start:

    words 0, 1      groups in use; tiles in all (a tile holds up to `tile` columns of one group)
    at GROUPS       per group 4 words: matrix, first column, one past the last column, first tile
    at COLUMNS      per column 2 words: row number of x, address of its row of y

The kernels of a product get four tensors, y (the node), w, x and ids (absent in mul_mat), and as extras the offsets in
the workspace of the columns, the prepared x, and the threads' scratch memory, the bytes of scratch of one thread, and
the slice of x's rows, [first, last), that is prepared and multiplied now.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from graphrt.backends.cpu.args import TENSOR_WORDS, address, size, stride, word
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.memory import load_integer, store_integer, store_one
from graphrt.tensor import Tensor

Y, W, X, IDS, TENSORS = 0, 1, 2, 3, 4
UP = IDS  # of a gated unit, whose kernels need no ids: the other half's matrices
WORKSPACE = TENSORS * TENSOR_WORDS
COUNTER, COLUMNS, PREPARED, SCRATCH, SCRATCH_BYTES, SLICE_FIRST, SLICE_LAST = (WORKSPACE + i for i in range(1, 8))
GROUPS, GROUP_BYTES, COLUMN_BYTES = 64, 32, 16
MATRIX, FIRST, LAST, FIRST_TILE = 0, 1, 2, 3
X_ROW, Y_ADDRESS = 0, 1


@dataclass(frozen=True)
class Layout:
    """Where the parts of a product's workspace lie.

    Args:
        groups, columns: how many there are at most.
        prepared: bytes of the prepared x.
        scratch: bytes of one thread's scratch memory.
    """

    groups: int
    columns: int
    prepared: int
    scratch: int

    @property
    def offsets(self) -> list[int]:
        """The offsets, as kernels get them, and the bytes of one thread's scratch memory."""
        columns = GROUPS + GROUP_BYTES * self.groups
        prepared = _aligned(columns + COLUMN_BYTES * self.columns)
        return [columns, prepared, prepared + _aligned(self.prepared), _aligned(self.scratch)]

    def nbytes(self, threads: int) -> int:
        """Bytes of the whole workspace."""
        *_, scratch, each = self.offsets
        return scratch + threads * each


def _aligned(nbytes: int) -> int:
    return -(-nbytes // 64) * 64


def matrices(w: Tensor) -> int:
    """How many matrices w holds: the groups there are at most."""
    return prod(w.shape[:-2])


def columns(node: Tensor) -> int:
    """Columns of a product: the rows of y."""
    return prod(node.shape[:-1])


# ---- what the kernels of a product read ------------------------------------------------------------------------------


@helper
def group_count(args):
    return load_integer(word(args, WORKSPACE), "i64")


@helper
def tile_count(args):
    return load_integer(word(args, WORKSPACE) + 8, "i64")


@helper
def group_of_tile(args, tile):
    """The group that a tile belongs to."""
    group = 0
    while group + 1 < group_count(args) and group_word(args, group + 1, FIRST_TILE) <= tile:
        group += 1
    return group


@helper
def group_word(args, group, field):
    """MATRIX, FIRST (column), LAST (one past the last column) or FIRST_TILE of a group."""
    return load_integer(word(args, WORKSPACE) + GROUPS + GROUP_BYTES * group + 8 * field, "i64")


@helper
def column_word(args, column, field):
    """X_ROW or Y_ADDRESS of a column."""
    return load_integer(word(args, WORKSPACE) + word(args, COLUMNS) + COLUMN_BYTES * column + 8 * field, "i64")


@helper
def prepared(args):
    """Address of the prepared x."""
    return word(args, WORKSPACE) + word(args, PREPARED)


@helper
def scratch(args, ith):
    """Address of thread `ith`'s scratch memory."""
    return word(args, WORKSPACE) + word(args, SCRATCH) + ith * word(args, SCRATCH_BYTES)


@helper
def matrix_address(args, matrix):
    """Address of a matrix of w by its number, counted over w's outer axes."""
    inner = size(args, W, 1)
    return address(args, W) + matrix // inner * stride(args, W, 0) + matrix % inner * stride(args, W, 1)


# ---- writing the tables ----------------------------------------------------------------------------------------------


@helper
def _set_totals(args, groups, tiles):
    store_integer(word(args, WORKSPACE), "i64", groups)
    store_integer(word(args, WORKSPACE) + 8, "i64", tiles)


@helper
def _set_group(args, group, matrix, first, last, first_tile):
    entry = word(args, WORKSPACE) + GROUPS + GROUP_BYTES * group
    store_integer(entry + 8 * MATRIX, "i64", matrix)
    store_integer(entry + 8 * FIRST, "i64", first)
    store_integer(entry + 8 * LAST, "i64", last)
    store_integer(entry + 8 * FIRST_TILE, "i64", first_tile)


@helper
def _set_column(args, column, row, target):
    entry = word(args, WORKSPACE) + word(args, COLUMNS) + COLUMN_BYTES * column
    store_integer(entry + 8 * X_ROW, "i64", row)
    store_integer(entry + 8 * Y_ADDRESS, "i64", target)


@helper
def group_by_batch(args, tile):
    """The tables of mul_mat: axes 0 and 1 are batch axes and broadcast both ways."""
    w0, w1 = size(args, W, 0), size(args, W, 1)
    repeat0 = size(args, Y, 0) if w0 == 1 else 1
    repeat1 = size(args, Y, 1) if w1 == 1 else 1
    column, tiles = 0, 0
    for matrix in range(w0 * w1):
        first = column
        for i in range(repeat0 * repeat1):
            y0, y1 = matrix // w1 + i // repeat1, matrix % w1 + i % repeat1
            x0 = y0 if size(args, X, 0) > 1 else 0
            x1 = y1 if size(args, X, 1) > 1 else 0
            row = (x0 * size(args, X, 1) + x1) * size(args, X, 2)
            target = address(args, Y) + y0 * stride(args, Y, 0) + y1 * stride(args, Y, 1)
            for n in range(size(args, Y, 2)):
                _set_column(args, column, row + n, target + n * stride(args, Y, 2))
                column += 1
        _set_group(args, matrix, matrix, first, column, tiles)
        tiles += (column - first + tile - 1) // tile
    _set_totals(args, w0 * w1, tiles)


@helper
def _expert(args, pair):
    """The expert of a (token, rank) pair, by the pair's number."""
    used = size(args, IDS, 3)
    return load_integer(
        address(args, IDS) + pair // used * stride(args, IDS, 2) + pair % used * stride(args, IDS, 3), "i32"
    )


@helper
def group_by_expert(args, tile, cursors):
    """The tables of mul_mat_id. `cursors` is memory for a word per expert. A row whose id is no expert becomes NaN."""
    experts, used = size(args, W, 1), size(args, IDS, 3)
    pairs = size(args, IDS, 2) * used
    for expert in range(experts):
        store_integer(cursors + 8 * expert, "i64", 0)
    for pair in range(pairs):
        expert = _expert(args, pair)
        if 0 <= expert < experts:
            store_integer(cursors + 8 * expert, "i64", load_integer(cursors + 8 * expert, "i64") + 1)
        else:
            target = address(args, Y) + pair // used * stride(args, Y, 1) + pair % used * stride(args, Y, 2)
            for m in range(size(args, Y, 3)):
                store_one(target + 4 * m, "f32", np.float32(np.nan))
    groups, column, tiles = 0, 0, 0
    for expert in range(experts):
        count = load_integer(cursors + 8 * expert, "i64")
        if count > 0:
            _set_group(args, groups, expert, column, column + count, tiles)
            store_integer(cursors + 8 * expert, "i64", column)
            column += count
            tiles += (count + tile - 1) // tile
            groups += 1
    for pair in range(pairs):
        expert = _expert(args, pair)
        if 0 <= expert < experts:
            token, rank = pair // used, pair % used
            row = token * size(args, X, 2) + (rank if size(args, X, 2) > 1 else 0)
            target = address(args, Y) + token * stride(args, Y, 1) + rank * stride(args, Y, 2)
            column = load_integer(cursors + 8 * expert, "i64")
            _set_column(args, column, row, target)
            store_integer(cursors + 8 * expert, "i64", column + 1)
    _set_totals(args, groups, tiles)
