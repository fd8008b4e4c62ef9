"""Two products of few columns and their gated unit in one pass: y = activation(gate · x) · (up · x).

A thread claims some rows and takes them of both matrices, so that neither product is written to memory.
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
from graphrt.backends.cpu.matvec import rows_within, weights_address
from graphrt.backends.cpu.memory import load_f32, store_f32_first
from graphrt.backends.cpu.portions import MOST, portion_start
from graphrt.backends.cpu.row_products import AT_ONCE, Rows, columns_multiplier, pitch_of_prepared, rows_of

ASIDE = AT_ONCE * MOST  # products of either half that are kept until they meet
IN_CACHE = 64  # rows of each matrix that are taken at a time where there are more columns, which read them again


def gated_columns(dtype: str, dense: bool, lanes: int, name: str) -> Kernel:
    """Native: the gated unit of that name; w is the gate's matrices, tensor UP the other half's, laid out alike."""
    multiply_run, activate = _run_multiplier(rows_of(dtype, dense)), _activation(lanes, name)
    both = 2 * ASIDE

    def run(args, ith, nth):
        height, pitch = size(args, W, 2), stride(args, W, 2)
        total, products = group_count(args) * height, stack_floats(both)
        to_up, buffer = address(args, UP) - address(args, W), scratch(args, ith)
        number = claim(word(args, COUNTER), 1)
        row, end = portion_start(total, number, nth), portion_start(total, number + 1, nth)
        while row < total:
            number = claim(word(args, COUNTER), 1)
            next_row = portion_start(total, number, nth)
            while row < min(end, total):
                group, count = row // height, rows_within(row, min(end, total), height)
                column, last = group_word(args, group, FIRST), group_word(args, group, LAST)
                if last - column > AT_ONCE:
                    count = min(count, IN_CACHE)
                gate = weights_address(args, row, height, pitch)
                following = row + count if row + count < end else next_row
                next_gate = weights_address(args, following, height, pitch) if following < total else gate
                while column < last:
                    columns = min(AT_ONCE, last - column)
                    for half in range(2):
                        after = gate + to_up if half == 0 else next_gate
                        target = products + 4 * ASIDE * half
                        multiply_run(args, gate + half * to_up, count, column, columns, buffer, after, target)
                    for i in range(columns):
                        y = column_word(args, column + i, Y_ADDRESS) + 4 * (row % height)
                        activate(y, products + 4 * MOST * i, count)
                    column += columns
                row += count
            row, end = next_row, portion_start(total, number + 1, nth)

    return run


@helper
def _place_aside(args, column, number, base):
    return base + 4 * MOST * number


def _run_multiplier(rows: Rows):
    """A helper: the products of `count` rows with as many columns, kept aside; asks for what follows the rows."""
    multiply, row_bytes, at_once = columns_multiplier(rows, _place_aside), pitch_of_prepared(rows.form), rows.at_once

    @helper
    def multiply_run(args, weights, count, column, columns, buffer, following, target):
        width, pitch, step = size(args, W, 3), stride(args, W, 2), stride(args, W, 3)
        end = weights + count * pitch
        for i in range(0, count, at_once):
            w, base = weights + i * pitch, target + 4 * i
            multiply(args, w, step, width, column, columns, row_bytes(width), end, following, buffer, base)

    return multiply_run


def _activation(lanes: int, name: str):
    """A helper: y becomes the gate's products' activation times the other half's, which stand ASIDE behind them."""
    activation = ACTIVATIONS[name]

    @helper
    def activate(y, gates, count):
        for i in range(0, count, lanes):
            v = activation(load_f32(gates + 4 * i, "f32", lanes)) * load_f32(gates + 4 * (ASIDE + i), "f32", lanes)
            store_f32_first(y + 4 * i, "f32", v, count - i)

    return activate
