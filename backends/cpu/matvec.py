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
from graphrt.backends.cpu.row_products import AT_ONCE, Rows, columns_multiplier, pitch_of_prepared, rows_of


def mul_mat_columns(dtype: str, dense: bool) -> Kernel:
    """Native: y for every column, over x prepared in the form that the weights' dtype wants."""
    multiply_rows = rows_multiplier(rows_of(dtype, dense), _place_in_y)

    def run(args, ith, nth):
        height, buffer = size(args, W, 2), scratch(args, ith)
        total = group_count(args) * height
        number = claim(word(args, COUNTER), 1)
        row, end = portion_start(total, number, nth), portion_start(total, number + 1, nth)
        while row < total:
            number = claim(word(args, COUNTER), 1)
            next_row = portion_start(total, number, nth)
            end = min(end, total)
            while row < end:
                count = rows_within(row, end, height)
                following = row + count if row + count < end else next_row
                multiply_rows(args, row, count, following, buffer, 4 * (row % height))
                row += count
            row, end = next_row, portion_start(total, number + 1, nth)

    return run


def rows_multiplier(rows: Rows, place):
    """A helper: the products of `count` rows, of all groups' rows counted through, with all columns of their group.

    Memory is asked for ahead of them, and then from the row `following` on, if there is one.

    Args:
        place: as for `columns_multiplier`.
    """
    multiply, row_bytes, at_once = columns_multiplier(rows, place), pitch_of_prepared(rows.form), rows.at_once

    @helper
    def multiply_rows(args, row, count, following, buffer, base):
        height, width, pitch, step = size(args, W, 2), size(args, W, 3), stride(args, W, 2), stride(args, W, 3)
        weights, group, x_pitch = weights_address(args, row, height, pitch), row // height, row_bytes(width)
        end = weights + count * pitch
        after = weights_address(args, following, height, pitch) if following < group_count(args) * height else end
        first, last = group_word(args, group, FIRST), group_word(args, group, LAST)
        for _ in range(0, count, at_once):
            column = first
            while column < last:
                some = min(AT_ONCE, last - column)
                multiply(args, weights, step, width, column, some, x_pitch, end, after, buffer, base)
                column += some
            weights, base = weights + at_once * pitch, base + 4 * at_once

    return multiply_rows


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
