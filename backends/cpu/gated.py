"""Two products of one column each and their gated unit in one pass: y = activation(gate · x) · (up · x).

A thread claims some rows and takes them of both matrices, so that neither product is written to memory.
"""

from __future__ import annotations

from graphrt import dtypes
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
from graphrt.backends.cpu.jit import Kernel
from graphrt.backends.cpu.matvec import column_dot, distance_ahead, prepared_row, rows_within, weights_address
from graphrt.backends.cpu.memory import load_f32, store_f32_first, store_one
from graphrt.backends.cpu.portions import MOST, portion_start
from graphrt.backends.cpu.prepare import UNITS
from graphrt.backends.cpu.vecdot import units_of


def gated_columns(dtype: str, dense: bool, lanes: int, name: str) -> Kernel:
    """Native: the gated unit of that name; w is the gate's matrices, tensor UP the other half's, laid out alike."""
    units, activation = units_of(dtype, dense), ACTIVATIONS[name]
    per_unit, x_unit_bytes = UNITS[units.form]
    dot = column_dot(units, dtypes.get(dtype).block)

    def run(args, ith, nth):
        height, width = size(args, W, 2), size(args, W, 3)
        pitch, step = stride(args, W, 2), stride(args, W, 3)
        x_pitch = (width + per_unit - 1) // per_unit * x_unit_bytes
        total = group_count(args) * height
        buffer, gates, ups = scratch(args, ith), stack_floats(MOST), stack_floats(MOST)
        to_up = address(args, UP) - address(args, W)
        number = claim(word(args, COUNTER), 1)
        row, end = portion_start(total, number, nth), portion_start(total, number + 1, nth)
        while row < total:
            number = claim(word(args, COUNTER), 1)
            next_row = portion_start(total, number, nth)
            while row < min(end, total):
                group, count = row // height, rows_within(row, min(end, total), height)
                gate = weights_address(args, row, height, pitch)
                up, gate_end = gate + to_up, gate + count * pitch
                up_end = gate_end + to_up
                following = row + count if row + count < end else next_row
                next_gate = weights_address(args, following, height, pitch) if following < total else up_end
                for column in range(group_word(args, group, FIRST), group_word(args, group, LAST)):
                    x = prepared_row(args, column, x_pitch)
                    for i in range(count):
                        w = gate + i * pitch
                        ahead = distance_ahead(w, pitch, gate_end, up)
                        store_one(gates + 4 * i, "f32", dot(w, step, width, x, ahead, buffer))
                    for i in range(count):
                        w = up + i * pitch
                        ahead = distance_ahead(w, pitch, up_end, next_gate)
                        store_one(ups + 4 * i, "f32", dot(w, step, width, x, ahead, buffer))
                    y = column_word(args, column, Y_ADDRESS) + 4 * (row % height)
                    for i in range(0, count, lanes):
                        v = activation(load_f32(gates + 4 * i, "f32", lanes)) * load_f32(ups + 4 * i, "f32", lanes)
                        store_f32_first(y + 4 * i, "f32", v, count - i)
                row += count
            row, end = next_row, portion_start(total, number + 1, nth)

    return run
