"""Products with many columns of weights that int8 products do not take, floats above all.

Weights are expanded, a panel at a time, to float32, and multiplied by tiles of x.

A thread claims `tile.rows` rows of one group's matrix. For every DEPTH elements of K it expands them into a panel that
stays in the second-level cache, and takes the product with each of the group's tiles of x.
"""

from __future__ import annotations

import numpy as np

from graphrt import dtypes
from graphrt.backends.cpu.args import claim, size, stride, word
from graphrt.backends.cpu.codes import prefetch
from graphrt.backends.cpu.dequant import expander
from graphrt.backends.cpu.grouping import (
    COUNTER,
    FIRST,
    FIRST_TILE,
    LAST,
    MATRIX,
    SLICE_FIRST,
    SLICE_LAST,
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
from graphrt.backends.cpu.memory import load_f32_first, store_f32, store_f32_first
from graphrt.backends.cpu.simd import splat
from graphrt.backends.cpu.tile import Tile, multiply_up_to, transpose_block

DEPTH = 1024  # of a panel
STRIP = 256  # elements of a row expanded at a time: a whole number of blocks of every dtype


def scratch_bytes(tile: Tile) -> int:
    """Scratch memory of a thread: the panel (and the last transpose's overhang), a strip of rows, and a tile of y."""
    return 4 * (tile.rows * (DEPTH + tile.lanes) + tile.lanes * STRIP + tile.rows * tile.columns)


def mul_mat_tiles(dtype: str, lanes: int, vectors: int, columns: int) -> Kernel:
    """Native: y for every column, over a slice of x prepared as tiles of `columns` columns; later slices add to it."""
    height_of_tile = lanes * vectors
    fill_panel = _panel_filler(dtype, lanes, vectors)
    multiply = tile_multiplier(lanes, vectors, columns)
    strip_at = 4 * height_of_tile * (DEPTH + lanes)
    result_at = strip_at + 4 * lanes * STRIP

    def run(args, ith, nth):
        first_element, last_element = word(args, SLICE_FIRST), word(args, SLICE_LAST)
        height, width = size(args, W, 2), last_element - first_element
        bands = (height + height_of_tile - 1) // height_of_tile
        total = group_count(args) * bands
        panel = scratch(args, ith)
        item = claim(word(args, COUNTER), 1)
        while item < total:
            group, row = item // bands, item % bands * height_of_tile
            matrix = matrix_address(args, group_word(args, group, MATRIX))
            rows = min(height_of_tile, height - row)
            first, last = group_word(args, group, FIRST), group_word(args, group, LAST)
            tiles = prepared(args) + group_word(args, group, FIRST_TILE) * width * columns * 4
            for start in range(first_element, max(last_element, 1), DEPTH):
                depth = min(DEPTH, last_element - start)
                fill_panel(args, matrix, row, rows, start, depth, panel, panel + strip_at)
                x = tiles + (start - first_element) * columns * 4
                for column in range(first, last, columns):
                    count = min(columns, last - column)
                    prefetch_rows(args, column, count, row, height_of_tile)
                    multiply(panel, x, depth, panel + result_at, count)
                    for c in range(count):
                        y = column_word(args, column + c, Y_ADDRESS) + 4 * row
                        add_rows(panel + result_at + 4 * height_of_tile * c, y, rows, start > 0)
                    x += width * columns * 4
            item = claim(word(args, COUNTER), 1)

    return run


@helper
def prefetch_rows(args, column, count, row, rows):
    """Ask for the memory of y that a tile is about to be stored to: it is written once, and comes from far."""
    for c in range(column, column + count):
        y = column_word(args, c, Y_ADDRESS) + 4 * row
        for i in range(0, 4 * rows, 64):
            prefetch(y + i)


@helper
def add_rows(source, target, count, onto):
    """Store `count` float32, or add them onto what is there."""
    for i in range(0, count, 16):
        v = load_f32_first(source + 4 * i, "f32", 16, count - i)
        if onto:
            v = v + load_f32_first(target + 4 * i, "f32", 16, count - i)
        store_f32_first(target + 4 * i, "f32", v, count - i)


def _panel_filler(dtype: str, lanes: int, vectors: int):
    expand, block = expander(dtype), dtypes.get(dtype).block
    height_of_tile = lanes * vectors

    @helper
    def fill_panel(args, matrix, row, rows, start, depth, panel, strip):
        """Expand `rows` rows from `row` on, elements start … start+depth-1; absent rows are zeros."""
        pitch, step = stride(args, W, 2), stride(args, W, 3)
        zero = splat(np.float32(0), lanes)
        for vector in range(vectors):
            for k in range(0, depth, STRIP):
                count = min(STRIP, depth - k)
                for r in range(lanes):
                    line = strip + 4 * STRIP * r
                    if vector * lanes + r < rows:
                        source = matrix + (row + vector * lanes + r) * pitch + (start + k) // block * step
                        expand(source, step, count, line)
                    else:
                        for i in range(0, count, lanes):
                            store_f32(line + 4 * i, "f32", zero)
                for i in range(0, count, lanes):
                    place = panel + 4 * ((k + i) * height_of_tile + vector * lanes)
                    transpose_block(strip + 4 * i, 4 * STRIP, place, 4 * height_of_tile, lanes)

    return fill_panel


def tile_multiplier(lanes: int, vectors: int, columns: int):
    """A helper that multiplies a panel by 1 … columns columns of a tile of x, both packed."""
    multiply, pitch = multiply_up_to(lanes, vectors, columns, False), 4 * lanes * vectors

    @helper
    def multiply_packed(panel, x, depth, target, count):
        multiply(panel, pitch, x, 4 * columns, 4, depth, target, pitch, count)

    return multiply_packed
