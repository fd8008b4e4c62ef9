"""Two products of few columns and their gated unit in one pass: y = activation(gate · x) · (up · x).

A thread claims some rows and takes them of both matrices: the gate's products stand in y, still in the cache, when the
other half's are multiplied onto their activation.
"""

from __future__ import annotations

from graphrt.backends.cpu.args import address, claim, size, stride, word
from graphrt.backends.cpu.elements import stack_floats
from graphrt.backends.cpu.glu import ACTIVATIONS
from graphrt.backends.cpu.grouping import (
    COUNTER,
    FIRST,
    LAST,
    UP,
    Y_ADDRESS,
    W,
    column_word,
    group_count,
    group_word,
    scratch,
)
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.jit import Kernel
from graphrt.backends.cpu.matvec import distance_ahead, place_in_y, rows_within, weights_address
from graphrt.backends.cpu.memory import load_f32, load_f32_first, store_f32_first
from graphrt.backends.cpu.portions import MOST, portion_start
from graphrt.backends.cpu.row_products import AT_ONCE, columns_multiplier, prepared_bytes, rows_of

ASIDE = AT_ONCE * MOST  # products of the other half
IN_CACHE = 64  # rows of each matrix that are taken at a time where there are more columns, which read them again


def gated_columns(dtype: str, dense: bool, lanes: int, name: str) -> Kernel:
    """Native: the gated unit of that name; w is the gate's matrices, tensor UP the other half's, laid out alike."""
    rows, activate = rows_of(dtype, dense), _activation(lanes, name)
    gate_rows, up_rows = _run_multiplier(rows, place_in_y), _run_multiplier(rows, _place_aside)

    def run(args, ith, nth):
        height, pitch = size(args, W, 2), stride(args, W, 2)
        total, ups = group_count(args) * height, stack_floats(ASIDE)
        to_up, buffer = address(args, UP) - address(args, W), scratch(args, ith)
        number = claim(word(args, COUNTER), 1)
        row, end = portion_start(total, number, nth), portion_start(total, number + 1, nth)
        while row < total:
            number = claim(word(args, COUNTER), 1)
            next_row = portion_start(total, number, nth)
            while row < min(end, total):
                group, count = row // height, rows_within(row, min(end, total), height)
                first, last = group_word(args, group, FIRST), group_word(args, group, LAST)
                if last - first > AT_ONCE:
                    count = min(count, IN_CACHE)
                gate = weights_address(args, row, height, pitch)
                following = row + count if row + count < end else next_row
                up_end = gate + to_up + count * pitch
                next_gate = weights_address(args, following, height, pitch) if following < total else up_end
                y_at = 4 * (row % height)
                column = first
                while column < last:
                    gate_rows(args, gate, count, column, last, buffer, gate + to_up, y_at)
                    column += min(AT_ONCE, last - column)
                column = first
                while column < last:
                    up_rows(args, gate + to_up, count, column, last, buffer, next_gate, ups)
                    for number_of_column in range(min(AT_ONCE, last - column)):
                        y = column_word(args, column + number_of_column, Y_ADDRESS) + y_at
                        activate(y, ups + 4 * MOST * number_of_column, count)
                    column += min(AT_ONCE, last - column)
                row += count
            row, end = next_row, portion_start(total, number + 1, nth)

    return run


@helper
def _place_aside(args, column, number, base):
    return base + 4 * MOST * number


def _run_multiplier(rows, place):
    """A helper: `count` rows by as many columns from `column` on as are taken at once; asks for what follows them."""
    multiply, row_bytes, at_once = columns_multiplier(rows, place), prepared_bytes(rows.form), rows.at_once

    @helper
    def multiply_run(args, weights, count, column, last, buffer, following, base):
        width, pitch, step = size(args, W, 3), stride(args, W, 2), stride(args, W, 3)
        end, columns = weights + count * pitch, min(AT_ONCE, last - column)
        for i in range(0, count, at_once):
            w = weights + i * pitch
            ahead = distance_ahead(w, at_once * pitch, end, following)
            multiply(args, w, step, width, column, columns, row_bytes(width), ahead, buffer, base + 4 * i)

    return multiply_run


def _activation(lanes: int, name: str):
    """A helper: the gate's products become their activation times the other half's."""
    activation = ACTIVATIONS[name]

    @helper
    def activate(gates, ups, count):
        for i in range(0, count, lanes):
            v = activation(load_f32_first(gates + 4 * i, "f32", lanes, count - i))
            store_f32_first(gates + 4 * i, "f32", v * load_f32(ups + 4 * i, "f32", lanes), count - i)

    return activate
