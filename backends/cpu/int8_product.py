"""Products of block-quantized weights with many columns, in int8.

x is brought to int8 once, row by row. A thread then claims a band of rows of one group's matrix, unpacks it into a
panel that stays in its second-level cache, and multiplies that by the group's columns of x, a few at a time, while the
memory of its next band is brought near. Of a gated unit it takes the same band of both matrices, one after the other:
the gate's product is still in the cache when the other half is multiplied onto it. Products that a weighted sum reads
are added up at once (see expert_sums.py).
"""

from __future__ import annotations

from graphrt import dtypes
from graphrt.backends.cpu.args import address, size, stride, word
from graphrt.backends.cpu.expert_sums import SUM, add_weighted, end_turn, item_finder
from graphrt.backends.cpu.glu import ACTIVATIONS
from graphrt.backends.cpu.grouping import (
    COLUMN_BYTES,
    COLUMNS,
    FIRST,
    LAST,
    MATRIX,
    UP,
    WORKSPACE,
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
from graphrt.backends.cpu.int8_codes import write_codes
from graphrt.backends.cpu.int8_form import ELEMENTS, X_BYTES, shape
from graphrt.backends.cpu.int8_panel import ROWS, filler, panel_of
from graphrt.backends.cpu.int8_tile import LINES_AHEAD, multiply_up_to
from graphrt.backends.cpu.jit import Kernel
from graphrt.backends.cpu.matmat import add_rows, prefetch_rows
from graphrt.backends.cpu.memory import load_f32_first, load_integer, store_f32_first, store_integer
from graphrt.backends.cpu.prepare import unit_writer

DEPTH, MORE = 4096, 1024  # elements of K that a panel holds, and that may be added so as to leave no few


def row_bytes(elements: int) -> int:
    """Bytes of a row of x."""
    return elements // ELEMENTS * X_BYTES


def scratch_bytes(dtype: str, width: int) -> int:
    """Scratch memory of a thread: a panel, a tile of y, and a copy of rows where fewer than 16 are left."""
    depth = min(width, DEPTH + MORE)
    panel, tile = depth // ELEMENTS * panel_of(dtype, shape().rows).nbytes, 4 * shape().rows * shape().columns
    return panel + tile + ROWS * dtypes.get(dtype).row_bytes(depth)


def prepare_codes(dtype: str) -> Kernel:
    """Native: x row by row in int8."""
    prepare = unit_writer(dtype, ELEMENTS, X_BYTES, _write_block)

    def run(args, ith, nth):
        prepare(args, ith)

    return run


@helper
def _write_block(source, target):
    write_codes(source, target, True)


def holds_whole_rows(width: int) -> bool:
    """Whether a panel holds rows of so many elements, as the two halves of a gated unit must be."""
    return width <= DEPTH + MORE


def mul_mat_codes(dtype: str, unit: str, lanes: int) -> Kernel:
    """Native: y for every column, over x prepared by `prepare_codes`: the product, or the op `unit` that reads it.

    Of a gated unit w is the gate's matrices, and tensor UP the other half's, laid out alike; of a weighted sum, tensors
    and extras are as in expert_sums.py.
    """
    multiply_band = _band_multiplier(dtype, unit, lanes)
    take_item, look_ahead = item_finder(unit, True), item_finder(unit, False)
    rows_of_band, halves, is_sum = shape().rows, 2 if unit in ACTIVATIONS else 1, unit == SUM

    def run(args, ith, nth):
        height, pitch = size(args, W, 2), stride(args, W, 2)
        bands = (height + rows_of_band - 1) // rows_of_band
        total = group_count(args) * bands
        item = take_item(args, -1, bands, ith, nth)
        while item < total:
            following = look_ahead(args, item % bands, bands, ith, nth)
            ahead, ahead_end = 0, 0
            if following < total:
                row = following % bands * rows_of_band
                ahead = matrix_address(args, group_word(args, following // bands, MATRIX)) + row * pitch
                ahead_end = ahead + min(rows_of_band, height - row) * pitch
            group, row = item // bands, item % bands * rows_of_band
            weights = matrix_address(args, group_word(args, group, MATRIX)) + row * pitch
            for half in range(halves):
                near, near_end = ahead, ahead_end
                if half + 1 < halves:
                    near = weights + address(args, UP) - address(args, W)
                    near_end = near + min(rows_of_band, height - row) * pitch
                multiply_band(args, group, row, weights, half, scratch(args, ith), near, near_end)
                weights = near
            if is_sum:
                end_turn(args, item % bands)
                following = take_item(args, item % bands, bands, ith, nth)
            item = following

    return run


def _band_multiplier(dtype: str, unit: str, lanes: int):
    block, nbytes = dtypes.get(dtype).block, dtypes.get(dtype).rows * dtypes.get(dtype).nbytes
    rows_of_band, columns = shape().rows, shape().columns
    form = panel_of(dtype, rows_of_band)
    panel_bytes, lines = form.nbytes, 64 * LINES_AHEAD
    fill_panel = _panel_filler(dtype, rows_of_band)
    multiply = multiply_up_to(rows_of_band, form.parts, form.has_least, columns)
    put = _gated_rows(unit, lanes) if unit in ACTIVATIONS else _weighted_rows if unit == SUM else _plain_rows

    @helper
    def multiply_band(args, group, row, weights, half, panel, ahead, ahead_end):
        """y for a band of rows of a group, while the memory ahead … ahead_end is brought near."""
        width, pitch = size(args, W, 3), stride(args, W, 2)
        rows_left = min(rows_of_band, size(args, W, 2) - row)
        x_pitch = width // ELEMENTS * X_BYTES
        entries = word(args, WORKSPACE) + word(args, COLUMNS) + 8 * X_ROW
        start = 0
        while start < width:
            elements = DEPTH if width - start > DEPTH + MORE else width - start
            blocks = elements // ELEMENTS
            result = panel + blocks * panel_bytes
            fill_panel(weights + start // block * nbytes, pitch, rows_left, elements, panel, result)
            x = prepared(args) + start // ELEMENTS * X_BYTES
            column, last = group_word(args, group, FIRST), group_word(args, group, LAST)
            while column < last:
                count = tile_width(last - column, columns)
                entry = entries + COLUMN_BYTES * column
                near, step = (ahead, lines) if ahead < ahead_end else (panel, 0)
                prefetch_rows(args, column, count, row, rows_left)
                multiply(panel, blocks, x, x_pitch, entry, count, result, near, step)
                ahead += blocks * lines
                for c in range(count):
                    put(args, column + c, row, result + 4 * rows_of_band * c, rows_left, start > 0, half)
                column += count
            start += elements

    return multiply_band


@helper
def _plain_rows(args, column, row, source, count, onto, half):
    add_rows(source, column_word(args, column, Y_ADDRESS) + 4 * row, count, onto)


@helper
def _weighted_rows(args, column, row, source, count, onto, half):
    add_weighted(args, column, row, source, count)


def _gated_rows(unit: str, lanes: int):
    """A helper: stores the gate's float32, and makes them their activation times the other half's."""
    activation = ACTIVATIONS[unit]

    @helper
    def gated_rows(args, column, row, source, count, onto, half):
        target = column_word(args, column, Y_ADDRESS) + 4 * row
        if half == 0:
            add_rows(source, target, count, onto)
            return
        for i in range(0, count, lanes):
            v = activation(load_f32_first(target + 4 * i, "f32", lanes, count - i))
            v = v * load_f32_first(source + 4 * i, "f32", lanes, count - i)
            store_f32_first(target + 4 * i, "f32", v, count - i)

    return gated_rows


@helper
def tile_width(left, most):
    """Columns to take of those that are left: a few more than fit are shared out to two tiles."""
    wide = 3 * most // 4
    if left <= most:
        return left
    return wide if left <= 2 * wide else most


def _panel_filler(dtype: str, height: int):
    fill = filler(dtype, height)
    block, nbytes = dtypes.get(dtype).block, dtypes.get(dtype).nbytes

    @helper
    def fill_panel(source, pitch, rows, elements, panel, strip):
        """`rows` rows as a panel; the rest of it is left as it is. The strip is room for a copy of 16 rows."""
        row_bytes = elements // block * nbytes
        for at in range(0, rows, ROWS):
            place = panel + 4 * at
            if rows - at < ROWS:
                for r in range(rows - at):
                    copy_bytes(source + (at + r) * pitch, row_bytes, strip + r * row_bytes)
                fill(strip, row_bytes, elements, place)
            else:
                fill(source + at * pitch, pitch, elements, place)

    return fill_panel


@helper
def copy_bytes(source, count, target):
    for i in range(count):
        store_integer(target + i, "i8", load_integer(source + i, "i8"))
