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
from graphrt.backends.cpu.attention_layout import SPEEDS, setting
from graphrt.backends.cpu.attention_rotation import (
    AIM,
    NEVER,
    current_turn,
    offset_turn,
    row_turner,
    start_turner,
    turn_apart,
    turn_maker,
)
from graphrt.backends.cpu.attention_steps import float_setting, rows_loader
from graphrt.backends.cpu.elements import FLOAT32
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.memory import load_integer, load_one, store_integer, store_one
from graphrt.backends.cpu.rope import turn_halves, turn_neighbours

ONE = np.float32(1)
SAME, RISING, ANY = 0, 1, 2


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
    seen = scratch + setting(args, at.SEEN)
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


def block_aimer(lanes, vectors, mode, whole, integers):
    """A helper: turn a block's queries back where that spares turning a chunk's keys; tells whether keys must turn."""
    load_rows = rows_loader(lanes, vectors, mode, whole, integers)

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


def key_turner(lanes, mode, whole):
    """A helper: turn a cell's key, expanded to float32, by what the queries were not turned back by."""
    turn_row = row_turner(lanes, mode, whole)

    @helper
    def turn_key(args, scratch, first_cell, c, aim, line):
        if load_integer(scratch + setting(args, at.SEEN) + c, "i8") != 0:
            rotation = position_of(args, at.CELL_ROTATION, first_cell + c) - aim
            turn_row(scratch + setting(args, at.TURNER), line + 4 * setting(args, at.FIRST), rotation)

    return turn_key


def tile_turner(lanes, mode, whole):
    """A helper: the same for all keys of a chunk, which are the rows of a tile."""
    turn_key = key_turner(lanes, mode, whole)

    @helper
    def turn(args, scratch, first_cell, cells, aim):
        tile, pitch = scratch + setting(args, at.KEYS), setting(args, at.KEY_PITCH)
        for c in range(cells):
            turn_key(args, scratch, first_cell, c, aim, tile + c * pitch)

    return turn


def lines_aimer(lanes, mode, whole):
    """A helper: make ready the queries of some kv heads, row by row, and the turns of keys, for a chunk.

    It gives the address of the queries' rows, and that of the keys' turns: 0 where the keys are taken as they lie. Only
    whole vectors turn on the way to products, by turns side by side, one for each cell; otherwise the address is that
    of the turner, for the tile of keys to turn. Where keys turn so, pairs of queries are put apart.
    """
    make_turn, current, put_apart = turn_maker(lanes), current_turn(lanes), turn_apart(lanes, mode)
    turn = (turn_neighbours if mode == "normal" else turn_halves)(lanes)

    @helper
    def copy(target, source, start, end):
        for i in range(start, end, 4):
            store_one(target + i, "f32", load_one(source + i, "f32"))

    @helper
    def aim(args, scratch, first_line, lines, first_cell, cells):
        turner, pitch, pairs = scratch + setting(args, at.TURNER), setting(args, at.KEY_PITCH), setting(args, at.PAIRS)
        kind, rotation = survey(args, scratch, first_cell, cells)
        if kind == SAME and rotation == 0:
            return scratch + setting(args, at.LINES), 0
        if kind == SAME and rotation == aim_of(args, scratch):
            return scratch + setting(args, at.TURNED), 0
        if kind != SAME and not whole:
            return scratch + setting(args, at.LINES), turner
        set_aim(args, scratch, rotation if kind == SAME else NEVER)
        back, turns, turn_bytes = offset_turn(turner, 0), offset_turn(turner, 0), setting(args, at.TURN_BYTES)
        if kind == ANY:
            turns, seen = scratch + setting(args, at.TURNS), scratch + setting(args, at.SEEN)
            for c in range(cells):
                if load_integer(seen + c, "i8") != 0:
                    make_turn(turner, position_of(args, at.CELL_ROTATION, first_cell + c), turns + c * turn_bytes)
        else:
            back = current(turner, -rotation)
        first, end = 4 * setting(args, at.FIRST), 4 * setting(args, at.FIRST) + 8 * pairs
        for line in range(first_line, first_line + lines):
            source = scratch + setting(args, at.LINES) + line * pitch
            target = scratch + setting(args, at.TURNED) + line * pitch
            copy(target, source, 0, first)
            copy(target, source, end, pitch)
            x, y, sines = source + first, target + first, back + turn_bytes // 2
            if kind != SAME:
                put_apart(y, x, back, sines, pairs)
            else:
                turn(y, y + 4 * pairs, FLOAT32, x, x + 4 * pairs, FLOAT32, back, sines, pairs)
        return scratch + setting(args, at.TURNED), 0 if kind == SAME else turns

    return aim
