"""mul_mat_transposed: y = x · w, where w's rows, as they are stored, are what is added up.

A thread claims a band of BAND outputs of one group, a whole number of blocks of every dtype, and expands w's rows of
that band. With few columns expanded rows are added, times their x, to the columns' sums. With many columns rows are
gathered into panels, which need no transpose here, and multiplied by tiles of x.
"""

from __future__ import annotations

import numpy as np

from graphrt import dtypes
from graphrt.backends.cpu.args import claim, size, stride, word
from graphrt.backends.cpu.dequant import expander
from graphrt.backends.cpu.grouping import (
    COUNTER,
    FIRST,
    FIRST_TILE,
    LAST,
    MATRIX,
    SLICE_FIRST,
    SLICE_LAST,
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
from graphrt.backends.cpu.matmat import add_rows, prefetch_rows, tile_multiplier
from graphrt.backends.cpu.memory import load_f32, load_one, store_f32
from graphrt.backends.cpu.prepare import UNITS
from graphrt.backends.cpu.simd import fma, splat
from graphrt.backends.cpu.tile import Tile

BAND = 256
DEPTH = 128  # rows of w in a panel
ROWS = 4  # of w that the kernel for few columns expands before it adds them to the sums
COLUMNS = 16  # of the kernel for few columns: sums that stay in the first-level cache
MANY = 5  # columns from which the kernel for many is faster (measured)


def scratch_bytes(tile: Tile) -> int:
    """Scratch memory of a thread: an expanded row, the panels and a tile of y; or expanded rows and columns' sums."""
    return 4 * BAND + 4 * max(BAND * DEPTH + tile.rows * tile.columns, (ROWS - 1 + COLUMNS) * BAND)


def transposed_columns(dtype: str) -> Kernel:
    """Native: y for every column, over x prepared as float32 rows."""
    expand_band = _band_expander(dtype)
    per_unit, unit_bytes = UNITS["rows"]

    def run(args, ith, nth):
        height, width = size(args, W, 2), size(args, W, 3)
        bands = (width + BAND - 1) // BAND
        x_pitch = (height + per_unit - 1) // per_unit * unit_bytes
        lines, sums = scratch(args, ith), scratch(args, ith) + 4 * BAND * ROWS
        item = claim(word(args, COUNTER), 1)
        while item < group_count(args) * bands:
            group, start = item // bands, item % bands * BAND
            matrix = matrix_address(args, group_word(args, group, MATRIX))
            count = min(BAND, width - start)
            for first in range(group_word(args, group, FIRST), group_word(args, group, LAST), COLUMNS):
                columns = min(COLUMNS, group_word(args, group, LAST) - first)
                clear(sums, columns * BAND)
                for row in range(0, height, ROWS):
                    for r in range(min(ROWS, height - row)):
                        expand_band(args, matrix, row + r, start, count, lines + 4 * BAND * r)
                    for c in range(columns):
                        x = prepared(args) + column_word(args, first + c, X_ROW) * x_pitch + 4 * row
                        add_scaled(lines, x, min(ROWS, height - row), sums + 4 * BAND * c)
                for c in range(columns):
                    y = column_word(args, first + c, Y_ADDRESS) + 4 * start
                    add_rows(sums + 4 * BAND * c, y, count, False)
            item = claim(word(args, COUNTER), 1)

    return run


def transposed_tiles(dtype: str, lanes: int, vectors: int, columns: int) -> Kernel:
    """Native: y for every column, over a slice of x prepared as tiles of `columns` columns; later slices add to it."""
    rows_of_tile = lanes * vectors
    expand_band, multiply = _band_expander(dtype), tile_multiplier(lanes, vectors, columns)

    def run(args, ith, nth):
        first_row, last_row = word(args, SLICE_FIRST), word(args, SLICE_LAST)
        height, width = last_row - first_row, size(args, W, 3)
        bands = (width + BAND - 1) // BAND
        line, panels = scratch(args, ith), scratch(args, ith) + 4 * BAND
        result = panels + 4 * BAND * DEPTH
        item = claim(word(args, COUNTER), 1)
        while item < group_count(args) * bands:
            group, start = item // bands, item % bands * BAND
            matrix = matrix_address(args, group_word(args, group, MATRIX))
            first, last = group_word(args, group, FIRST), group_word(args, group, LAST)
            tiles = prepared(args) + group_word(args, group, FIRST_TILE) * height * columns * 4
            width_of_band = min(BAND, width - start)
            for row in range(first_row, max(last_row, 1), DEPTH):
                depth = min(DEPTH, last_row - row)
                for k in range(depth):
                    expand_band(args, matrix, row + k, start, width_of_band, line)
                    for at in range(0, width_of_band, rows_of_tile):
                        place = panels + 4 * (at * DEPTH + k * rows_of_tile)
                        for i in range(0, rows_of_tile, lanes):
                            store_f32(place + 4 * i, "f32", load_f32(line + 4 * (at + i), "f32", lanes))
                x = tiles + (row - first_row) * columns * 4
                for column in range(first, last, columns):
                    count = min(columns, last - column)
                    for at in range(0, width_of_band, rows_of_tile):
                        prefetch_rows(args, column, count, start + at, rows_of_tile)
                        multiply(panels + 4 * at * DEPTH, x, depth, result, count)
                        for c in range(count):
                            y = column_word(args, column + c, Y_ADDRESS) + 4 * (start + at)
                            source = result + 4 * rows_of_tile * c
                            add_rows(source, y, min(rows_of_tile, width_of_band - at), row > 0)
                    x += height * columns * 4
            item = claim(word(args, COUNTER), 1)

    return run


@helper
def clear(target, count):
    for i in range(0, count, 16):
        store_f32(target + 4 * i, "f32", splat(np.float32(0), 16))


@helper
def add_scaled(lines, x, count, sums):
    """Add `count` lines of BAND float32, each times its float32 at x, to sums; ROWS of them in one go."""
    if count == ROWS:
        a, b = splat(load_one(x, "f32"), 16), splat(load_one(x + 4, "f32"), 16)
        c, d = splat(load_one(x + 8, "f32"), 16), splat(load_one(x + 12, "f32"), 16)
        for i in range(0, 4 * BAND, 64):
            v = fma(load_f32(lines + i, "f32", 16), a, load_f32(sums + i, "f32", 16))
            w = load_f32(lines + 4 * BAND + i, "f32", 16) * b
            v = fma(load_f32(lines + 8 * BAND + i, "f32", 16), c, v)
            w = fma(load_f32(lines + 12 * BAND + i, "f32", 16), d, w)
            store_f32(sums + i, "f32", v + w)
        return
    for r in range(count):
        factor = splat(load_one(x + 4 * r, "f32"), 16)
        for i in range(0, 4 * BAND, 64):
            v = fma(load_f32(lines + 4 * BAND * r + i, "f32", 16), factor, load_f32(sums + i, "f32", 16))
            store_f32(sums + i, "f32", v)


def _band_expander(dtype: str):
    expand, block = expander(dtype), dtypes.get(dtype).block

    @helper
    def expand_band(args, matrix, row, start, count, line):
        source = matrix + row * stride(args, W, 2) + start // block * stride(args, W, 3)
        expand(source, stride(args, W, 3), count, line)

    return expand_band
