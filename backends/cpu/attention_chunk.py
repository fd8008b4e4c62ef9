"""The tiles of a chunk of cells, for many rows: its keys and values, as float32 or as pairs of int16 (see int16.py)."""

from __future__ import annotations

import numpy as np

from graphrt.backends.cpu import attention_layout as at
from graphrt.backends.cpu.args import size
from graphrt.backends.cpu.attention_cells import (
    BRAIN,
    HALF,
    ONE,
    ZERO,
    row_filler,
    row_of,
    tile_filler,
)
from graphrt.backends.cpu.attention_layout import CELLS, KEY_FACTORS_STEP, setting
from graphrt.backends.cpu.attention_parts import factors_finder, parts_packer
from graphrt.backends.cpu.attention_turns import key_turner, tile_turner
from graphrt.backends.cpu.dot import load_i32, store_bytes
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.int16 import (
    NORM,
    factor_finder,
    greater_halves,
    greatest_half,
    pair_halves,
    row_packer,
)
from graphrt.backends.cpu.memory import load_one, store_one
from graphrt.backends.cpu.simd import splat
from graphrt.backends.cpu.tile import Tile

AT_ONCE = 8  # rows that the first-level cache holds until they are packed
# CELLS products of powers of norm n with integers up to m sum up to √CELLS · n · m at most; rounding adds a little.
MOST_SUM = np.float32(2**31 * 0.999 / CELLS**0.5)


def rows_packer(lanes, dtype):
    """A helper: the keys of a chunk, of a plain dtype and as they lie, as rows of int16."""
    find_factors, pack_parts = factors_finder(lanes, dtype), parts_packer(lanes, dtype)

    @helper
    def pack_rows(args, scratch, kv_head, first_cell, cells):
        tile, pitch = scratch + setting(args, at.KEYS), setting(args, at.KEY_ROW)
        factors = scratch + setting(args, at.KEY_FACTORS)
        # The factors of some rows first, so that no row waits for its own.
        for first in range(0, cells, AT_ONCE):
            last = min(first + AT_ONCE, cells)
            for c in range(first, last):
                row = row_of(args, at.K, kv_head, first_cell + c)
                find_factors(args, row, factors + 4 * c, KEY_FACTORS_STEP)
            for c in range(first, last):
                row = row_of(args, at.K, kv_head, first_cell + c)
                pack_parts(args, row, factors + 4 * c, KEY_FACTORS_STEP, tile + c * pitch)

    return pack_rows


def lines_packer(lanes, mode, whole):
    """A helper: the keys of a chunk, turned where `turning` says so, as rows of int16."""
    fill_row, turn_key = row_filler(lanes), key_turner(lanes, mode, whole)
    find_factors, pack_parts = factors_finder(lanes), parts_packer(lanes)

    @helper
    def pack_lines(args, scratch, kv_head, first_cell, cells, turning, aim):
        tile, line = scratch + setting(args, at.KEYS), scratch + setting(args, at.LINES)
        for c in range(cells):
            factors = scratch + setting(args, at.KEY_FACTORS) + 4 * c
            fill_row(args, at.K, kv_head, first_cell, c, scratch, line, setting(args, at.KEY_PITCH))
            if mode and turning:
                turn_key(args, scratch, first_cell, c, aim, line)
            find_factors(args, line, factors, KEY_FACTORS_STEP)
            pack_parts(args, line, factors, KEY_FACTORS_STEP, tile + c * setting(args, at.KEY_ROW))

    return pack_lines


def keys_loader(lanes, mode, whole, integers):
    """A helper: the keys of a chunk, turned where `turning` says so by what the queries were not, as rows of KEYS.

    Args: all_seen: whether every cell holds a key, so that rows may be taken as they lie.
    """
    fill, turn = tile_filler(lanes), tile_turner(lanes, mode, whole)
    pack_lines, pack_halves = lines_packer(lanes, mode, whole), rows_packer(lanes, "f16")
    pack_brains = rows_packer(lanes, "bf16")

    @helper
    def load_keys(args, scratch, kv_head, first_cell, cells, turning, aim, all_seen):
        if integers:
            kind, whole_rows = setting(args, at.K_KIND), setting(args, at.KEY_PITCH) == 4 * size(args, at.K, 3)
            if whole_rows and all_seen and not turning and kind == HALF:
                pack_halves(args, scratch, kv_head, first_cell, cells)
            elif whole_rows and all_seen and not turning and kind == BRAIN:
                pack_brains(args, scratch, kv_head, first_cell, cells)
            else:
                pack_lines(args, scratch, kv_head, first_cell, cells, turning, aim)
        else:
            fill(args, at.K, kv_head, first_cell, cells, scratch)
            if mode and turning:
                turn(args, scratch, first_cell, cells, aim)

    return load_keys


def pair_packer(lanes, shape: Tile):
    """A helper: two rows of int16 as a row of words of each stripe of values; gives the greatest magnitudes so far."""
    stripe = shape.rows

    @helper
    def pack_pair(args, scratch, number, first, second, top):
        target = scratch + setting(args, at.VALUES) + number * setting(args, at.TILE_PITCH)
        for i in range(0, setting(args, at.VALUE_PITCH) // 2, 2 * stripe):
            v, w = load_i32(first + i, lanes), load_i32(second + i, lanes)
            top = greater_halves(greater_halves(top, v), w)
            store_bytes(target, pair_halves(v, w, False))
            store_bytes(target + 4 * lanes, pair_halves(v, w, True))
            target += setting(args, at.PANEL_BYTES)
        return top

    return pack_pair


def values_packer(lanes, shape: Tile):
    """A helper: the values of a chunk as stripes [pairs of cells, words]; gives the greatest magnitudes.

    They are made of the keys' rows where these serve as values.
    """
    fill_row, pack_pair = row_filler(lanes), pair_packer(lanes, shape)
    find_factor, pack_row = factor_finder(lanes), row_packer(lanes)

    @helper
    def pack_keys(args, scratch, cells):
        top, pitch = splat(np.int32(0), lanes), setting(args, at.KEY_ROW)
        for c in range(0, cells, 2):
            row = scratch + setting(args, at.KEYS) + c * pitch
            top = pack_pair(args, scratch, c // 2, row, row + pitch if c + 1 < cells else row, top)
        return top

    @helper
    def pack_values(args, scratch, kv_head, first_cell, cells):
        if setting(args, at.SHARED):
            return pack_keys(args, scratch, cells)
        pitch, top = setting(args, at.VALUE_PITCH), splat(np.int32(0), lanes)
        first, factors = scratch + setting(args, at.LINES), scratch + setting(args, at.VALUE_FACTORS)
        for c in range(cells):
            line = first + c % 2 * pitch
            fill_row(args, at.V, kv_head, first_cell, c, scratch, line, pitch)
            factor = find_factor(line, pitch // 4)
            pack_row(line, pitch // 4, factor, line)
            store_one(factors + 4 * c, "f32", factor)
            if c % 2 != 0 or c + 1 == cells:
                top = pack_pair(args, scratch, c // 2, first, line, top)
        return top

    return pack_values


def values_loader(lanes, shape: Tile, integers):
    """A helper: the values of a chunk, as a tile of VALUES; float32 keys that serve as values are there.

    Integers: VALUE_FACTORS become the factors of cells over the greatest one.

    Returns: the greatest factor; the norm that powers may have for sums of products to stay below 2³¹.
    """
    fill, pack_values = tile_filler(lanes), values_packer(lanes, shape)

    @helper
    def load_values(args, scratch, kv_head, first_cell, cells):
        if not integers:
            if not setting(args, at.SHARED):
                fill(args, at.V, kv_head, first_cell, cells, scratch)
            return ONE, ONE
        top = pack_values(args, scratch, kv_head, first_cell, cells)
        factors = scratch + setting(args, at.VALUE_FACTORS)
        source = scratch + setting(args, at.KEY_FACTORS) if setting(args, at.SHARED) else factors
        greatest = ZERO
        for c in range(cells):
            greatest = max(greatest, load_one(source + 4 * c, "f32"))
        to_greatest = ONE / greatest if greatest > ZERO else ZERO
        for c in range(cells):
            store_one(factors + 4 * c, "f32", load_one(source + 4 * c, "f32") * to_greatest)
        return greatest, min(NORM, MOST_SUM / max(greatest_half(top), ONE))

    return load_values
