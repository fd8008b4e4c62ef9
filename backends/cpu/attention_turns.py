"""Keys that turn inside attention: what the rotations of a chunk have in common, and which turns, keys or queries.

Queries that are turned back stand to keys as they stood to turned keys: the product is the same. So where one rotation
holds for all cells of a chunk, as for cells that were shifted together, the queries turn back, once for all chunks of
that rotation, and the keys are taken as they lie. An aim is the rotation that the queries were turned back by.
"""

from __future__ import annotations

import numpy as np

from graphrt.backends.cpu import attention_layout as at
from graphrt.backends.cpu.args import TENSOR_WORDS, address, stride
from graphrt.backends.cpu.attention_cells import position_of
from graphrt.backends.cpu.attention_layout import CELLS, ROWS, SPEEDS, setting
from graphrt.backends.cpu.attention_rotation import AIM, row_turner, start_turner
from graphrt.backends.cpu.attention_steps import float_setting, rows_loader
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.memory import load_f32, load_integer, store_f32, store_integer

ONE = np.float32(1)
SAME, RISING, ANY = 0, 1, 2
AS_THEY_LIE, QUERIES_TURNED, KEYS_TURN = 0, 1, 2


@helper
def begin_turning(args, scratch):
    """Make the thread's turner ready."""
    speeds, pairs = args + 8 * (at.TENSORS * TENSOR_WORDS + SPEEDS), setting(args, at.PAIRS)
    factors, step = address(args, at.FREQ_FACTORS), stride(args, at.FREQ_FACTORS, 3)
    start_turner(scratch + setting(args, at.TURNER), pairs, speeds, factors, step, float_setting(args, at.MAGNITUDE))


@helper
def survey(args, scratch, first_cell, cells):
    """What the rotations of a chunk's cells that somebody sees have in common, and that of the first cell.

    SAME: they are equal. RISING: each is one more than that of the cell before. ANY: neither, or SAME with a magnitude,
    for which the keys turn.
    """
    seen = scratch + setting(args, at.SEEN) + CELLS * ROWS
    same, rising, first, known = True, True, 0, -1
    for c in range(cells):
        if load_integer(seen + c, "i8") != 0:
            rotation = position_of(args, at.CELL_ROTATION, first_cell + c)
            if known < 0:
                known, first = c, rotation
            same, rising = same and rotation == first, rising and rotation - first == c - known
    if same and float_setting(args, at.MAGNITUDE) == ONE:
        return SAME, first
    return (RISING, first - known) if rising else (ANY, 0)


@helper
def set_aim(args, scratch, rotation):
    store_integer(scratch + setting(args, at.TURNER) + AIM, "i64", rotation)


@helper
def aim_of(args, scratch):
    return load_integer(scratch + setting(args, at.TURNER) + AIM, "i64")


def block_aimer(lanes, vectors, mode):
    """A helper: turn a block's queries back where that spares turning a chunk's keys; tells whether keys must turn."""
    load_rows = rows_loader(lanes, vectors, mode)

    @helper
    def aim(args, scratch, kv_head, first_row, rows, first_cell, cells):
        kind, rotation = survey(args, scratch, first_cell, cells)
        if kind != SAME:
            return True
        if rotation != aim_of(args, scratch):
            set_aim(args, scratch, rotation)
            load_rows(args, scratch, kv_head, first_row, rows, rotation)
        return False

    return aim


def tile_turner(lanes, mode):
    """A helper: turn the keys of a chunk, expanded to a tile, by what the queries were not turned back by."""
    turn_row = row_turner(lanes, mode)

    @helper
    def turn(args, scratch, first_cell, cells, aim):
        turner, seen = scratch + setting(args, at.TURNER), scratch + setting(args, at.SEEN) + CELLS * ROWS
        row = scratch + setting(args, at.KEYS) + 4 * setting(args, at.FIRST)
        for c in range(cells):
            if load_integer(seen + c, "i8") != 0:
                rotation = position_of(args, at.CELL_ROTATION, first_cell + c) - aim
                turn_row(turner, row + c * setting(args, at.KEY_PITCH), rotation)

    return turn


def lines_aimer(lanes, mode):
    """A helper: turn back the queries of some kv heads, row by row, where that spares turning a chunk's keys.

    It tells which queries to take, and whether keys must turn.
    """
    turn_row = row_turner(lanes, mode)

    @helper
    def aim(args, scratch, first_line, lines, first_cell, cells):
        kind, rotation = survey(args, scratch, first_cell, cells)
        if kind != SAME:
            return KEYS_TURN
        if rotation == 0:
            return AS_THEY_LIE
        if rotation != aim_of(args, scratch):
            set_aim(args, scratch, rotation)
            turner, pitch = scratch + setting(args, at.TURNER), setting(args, at.KEY_PITCH)
            for line in range(first_line, first_line + lines):
                source = scratch + setting(args, at.LINES) + line * pitch
                target = scratch + setting(args, at.TURNED) + line * pitch
                for i in range(0, pitch, 4 * lanes):
                    store_f32(target + i, "f32", load_f32(source + i, "f32", lanes))
                turn_row(turner, target + 4 * setting(args, at.FIRST), -rotation)
        return QUERIES_TURNED

    return aim
