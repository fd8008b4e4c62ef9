"""Products with few columns: rows of weights are read once, straight from their own layout.

Rows are taken in their order: memory is then read in one ascending stream, which the processor prefetches best. A
thread claims its next rows before it begins with those at hand, and asks for them at their end: without that every
portion would begin by waiting for memory.
"""

from __future__ import annotations

from graphrt.backends.cpu.args import claim, size, stride, word
from graphrt.backends.cpu.grouping import (
    COUNTER,
    FIRST,
    LAST,
    MATRIX,
    Y_ADDRESS,
    W,
    column_word,
    group_count,
    group_word,
    matrix_address,
    scratch,
)
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.jit import Kernel
from graphrt.backends.cpu.portions import portion_start
from graphrt.backends.cpu.row_products import AT_ONCE, columns_multiplier, pitch_of_prepared, rows_of


def mul_mat_columns(dtype: str, dense: bool) -> Kernel:
    """Native: y for every column, over x prepared in the form that the weights' dtype wants."""
    rows = rows_of(dtype, dense)
    multiply, row_bytes, at_once = columns_multiplier(rows, _place_in_y), pitch_of_prepared(rows.form), rows.at_once

    def run(args, ith, nth):
        height, width = size(args, W, 2), size(args, W, 3)
        pitch, step, x_pitch = stride(args, W, 2), stride(args, W, 3), row_bytes(width)
        total, buffer = group_count(args) * height, scratch(args, ith)
        number = claim(word(args, COUNTER), 1)
        row, end = portion_start(total, number, nth), portion_start(total, number + 1, nth)
        while row < total:
            number = claim(word(args, COUNTER), 1)
            next_row = portion_start(total, number, nth)
            while row < min(end, total):
                group, count = row // height, rows_within(row, min(end, total), height)
                weights = weights_address(args, row, height, pitch)
                rows_end, next_one = weights + count * pitch, row + count if row + count < end else next_row
                following = weights_address(args, next_one, height, pitch) if next_one < total else rows_end
                first, last = group_word(args, group, FIRST), group_word(args, group, LAST)
                for y_row in range(row % height, row % height + count, at_once):
                    column = first
                    while column < last:
                        some, base = min(AT_ONCE, last - column), 4 * y_row
                        multiply(args, weights, step, width, column, some, x_pitch, rows_end, following, buffer, base)
                        column += some
                    weights += at_once * pitch
                row += count
            row, end = next_row, portion_start(total, number + 1, nth)

    return run


@helper
def _place_in_y(args, column, number, base):
    """Where a column's products go: `base` bytes into its row of y."""
    return column_word(args, column, Y_ADDRESS) + base


@helper
def rows_within(row, end, height):
    """Rows from `row` up to `end`, of all groups' rows counted through, that are in the same group."""
    return min(end - row, height - row % height)


@helper
def weights_address(args, row, height, pitch):
    """Address of a row of weights, of all groups' rows counted through."""
    return matrix_address(args, group_word(args, row // height, MATRIX)) + row % height * pitch
