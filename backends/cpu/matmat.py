"""Products with many columns of weights that int8 products do not take, floats above all.

Weights are expanded, a panel at a time, to float32, and multiplied by tiles of x.

A thread claims `tile.rows` rows of one group's matrix. For every DEPTH elements of K it expands them into a panel that
stays in the second-level cache, and takes the product with each of the group's tiles of x. Of a gated unit it takes
these rows of both matrices, each tile of x with one panel after the other, and keeps the sums of both until K is
through: only the unit is written to y. Products that a weighted sum reads are added up at once (see expert_sums.py).
"""

from __future__ import annotations

import numpy as np

from graphrt import dtypes
from graphrt.backends.cpu.args import address, size, stride, word
from graphrt.backends.cpu.codes import prefetch
from graphrt.backends.cpu.dequant import expander
from graphrt.backends.cpu.expert_sums import SUM, add_weighted, end_turn, item_finder
from graphrt.backends.cpu.glu import ACTIVATIONS
from graphrt.backends.cpu.grouping import (
    FIRST,
    FIRST_TILE,
    LAST,
    MATRIX,
    SLICE_FIRST,
    SLICE_LAST,
    UP,
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
from graphrt.backends.cpu.memory import load_f32, load_f32_first, store_f32, store_f32_first
from graphrt.backends.cpu.simd import splat
from graphrt.backends.cpu.tile import Tile, multiply_up_to, transpose_block

DEPTH = 1024  # of a panel
STRIP = 256  # elements of a row expanded at a time: a whole number of blocks of every dtype
TILES = 64  # of x that panels of a gated unit's halves meet while the sums of both are kept: at most so many


def scratch_bytes(tile: Tile, halves: int) -> int:
    """Scratch memory of a thread: panels (and the last transpose's overhang), a strip of rows, and tiles of y."""
    panels = 4 * tile.rows * (DEPTH + tile.lanes) * halves
    return panels + 4 * tile.lanes * STRIP + results_bytes(tile.rows, tile.columns, halves)


def results_bytes(rows: int, columns: int, halves: int) -> int:
    """Bytes of a tile of y, and of a gated unit of those of both products, and of their sums for TILES of x."""
    return 4 * rows * columns * (1 if halves == 1 else 2 + 2 * TILES)


def mul_mat_tiles(dtype: str, lanes: int, vectors: int, columns: int, unit: str) -> Kernel:
    """Native: y for every column, over a slice of x prepared as tiles of `columns` columns; later slices add to it.

    Args:
        unit: empty, or the op that reads the product, which is made instead. Of a gated unit, w is the gate's matrices,
            tensor UP the other half's, laid out alike, and the slice is all of x; of a weighted sum, tensors and extras
            are as in expert_sums.py.
    """
    height_of_tile, halves, is_sum = lanes * vectors, 2 if unit in ACTIVATIONS else 1, unit == SUM
    fill_panel, take_item = _panel_filler(dtype, lanes, vectors), item_finder(unit, True)
    multiply = tile_multiplier(lanes, vectors, columns)
    put = results_of(unit, lanes, height_of_tile, columns)
    panel_bytes, result_bytes = 4 * height_of_tile * (DEPTH + lanes), 4 * height_of_tile * columns
    strip_at = halves * panel_bytes
    result_at = strip_at + 4 * lanes * STRIP
    sums_at = result_at + halves * result_bytes

    def run(args, ith, nth):
        first_element, last_element = word(args, SLICE_FIRST), word(args, SLICE_LAST)
        height, width = size(args, W, 2), last_element - first_element
        bands = (height + height_of_tile - 1) // height_of_tile
        total = group_count(args) * bands
        panels = scratch(args, ith)
        result = panels + result_at
        item = take_item(args, -1, bands, ith, nth)
        while item < total:
            group, row = item // bands, item % bands * height_of_tile
            matrix = matrix_address(args, group_word(args, group, MATRIX))
            rows = min(height_of_tile, height - row)
            first, last = group_word(args, group, FIRST), group_word(args, group, LAST)
            at_once = TILES * columns if halves > 1 else last - first
            tiles = prepared(args) + group_word(args, group, FIRST_TILE) * width * columns * 4
            for begin in range(first, last, at_once):
                for start in range(first_element, max(last_element, 1), DEPTH):
                    depth, is_last = min(DEPTH, last_element - start), start + DEPTH >= last_element
                    for half in range(halves):
                        weights = matrix + half * (address(args, UP) - address(args, W))
                        panel = panels + half * panel_bytes
                        fill_panel(args, weights, row, rows, start, depth, panel, panels + strip_at)
                    x, sums = tiles + (start - first_element) * columns * 4, panels + sums_at
                    for column in range(begin, min(begin + at_once, last), columns):
                        count = min(columns, last - column)
                        prefetch_rows(args, column, count, row, height_of_tile)
                        for half in range(halves):
                            multiply(panels + half * panel_bytes, x, depth, result + half * result_bytes, count)
                        put(args, column, count, row, rows, start > 0, is_last, result, sums)
                        x += width * columns * 4
                        sums += halves * result_bytes
                tiles += TILES * width * columns * 4
            if is_sum:
                end_turn(args, item % bands)
            item = take_item(args, item % bands, bands, ith, nth)

    return run


def results_of(unit: str, lanes: int, rows_of_panel: int, columns: int):
    """A helper: puts the products of a panel with a tile of x where they belong, or what `unit` makes of them."""
    if unit in ACTIVATIONS:
        return gated_results(unit, lanes, rows_of_panel, columns)
    return weighted_results(rows_of_panel) if unit == SUM else plain_results(rows_of_panel)


def plain_results(rows_of_panel: int):
    """A helper: stores the products of a panel with a tile of x, or adds them onto what is there."""
    pitch = 4 * rows_of_panel

    @helper
    def put_results(args, column, count, row, rows, onto, is_last, result, sums):
        for c in range(count):
            y = column_word(args, column + c, Y_ADDRESS) + 4 * row
            add_rows(result + c * pitch, y, rows, onto)

    return put_results


def weighted_results(rows_of_panel: int):
    """A helper: adds the products of a panel with a tile of x, times their weights, onto the sums in y."""
    pitch = 4 * rows_of_panel

    @helper
    def put_results(args, column, count, row, rows, onto, is_last, result, sums):
        for c in range(count):
            add_weighted(args, column + c, row, result + c * pitch, rows)

    return put_results


def gated_results(unit: str, lanes: int, rows_of_panel: int, columns: int):
    """A helper: keeps the products of the gate's panel and the other with a tile of x; in the end, stores the unit."""
    activation, pitch = ACTIVATIONS[unit], 4 * rows_of_panel
    to_up = columns * pitch

    @helper
    def put_results(args, column, count, row, rows, onto, is_last, result, sums):
        for c in range(count):
            y = column_word(args, column + c, Y_ADDRESS) + 4 * row
            for i in range(0, rows, lanes):
                at = c * pitch + 4 * i
                gate, up = load_f32(result + at, "f32", lanes), load_f32(result + to_up + at, "f32", lanes)
                if onto:
                    gate = gate + load_f32(sums + at, "f32", lanes)
                    up = up + load_f32(sums + to_up + at, "f32", lanes)
                if is_last:
                    store_f32_first(y + 4 * i, "f32", activation(gate) * up, rows - i)
                else:
                    store_f32(sums + at, "f32", gate)
                    store_f32(sums + to_up + at, "f32", up)

    return put_results


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
