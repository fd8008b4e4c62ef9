"""Rows of queries and keys as int16, in parts of PART_WIDTH elements whose sums of products fit int32 (see int16.py).

Heads are one part. Keys that are values too are latents, which have one factor as values do, and beside them what was
rotated, which has its own: under one factor for both, the part of the smaller scale would be rounded away. Latents are
several parts, so that their integers can be greater: no part has a norm above NORM, but all together may.
"""

from __future__ import annotations

from graphrt.backends.cpu import attention_layout as at
from graphrt.backends.cpu.attention_layout import setting
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.int16 import factor_finder, row_packer
from graphrt.backends.cpu.memory import load_one, store_one
from graphrt.backends.cpu.tile import element_bytes


def factors_finder(lanes, dtype="f32"):
    """A helper: the factors of a row's parts, of a plain dtype, `step` bytes apart."""
    find_factor, nbytes = factor_finder(lanes, dtype), element_bytes(dtype)

    @helper
    def find_apart(args, row, factors, step):
        width, most = setting(args, at.KEY_PITCH) // 4, setting(args, at.PART_WIDTH)
        start = 0
        while start < width:
            store_one(factors, "f32", find_factor(row + nbytes * start, min(most, width - start)))
            factors, start = factors + step, start + most

    @helper
    def find_factors(args, row, factors, step):
        find_apart(args, row, factors, step)
        most = setting(args, at.PART_WIDTH)
        latents = setting(args, at.VALUE_PITCH) // 4 if setting(args, at.SHARED) else most
        # Written so that NaN stays.
        greatest, start, place = load_one(factors, "f32"), most, factors
        while start < latents:
            place, start = place + step, start + most
            factor = load_one(place, "f32")
            greatest = factor if factor > greatest or factor != factor else greatest
        while place > factors:
            store_one(place, "f32", greatest)
            place -= step
        store_one(factors, "f32", greatest)

    return find_factors


def parts_packer(lanes, dtype="f32"):
    """A helper: the row as int16 at `target`, which may be the row itself, given those factors."""
    pack_row, nbytes = row_packer(lanes, dtype), element_bytes(dtype)

    @helper
    def pack_parts(args, row, factors, step, target):
        width, most = setting(args, at.KEY_PITCH) // 4, setting(args, at.PART_WIDTH)
        start = 0
        while start < width:
            pack_row(row + nbytes * start, min(most, width - start), load_one(factors, "f32"), target + 2 * start)
            factors, start = factors + step, start + most

    return pack_parts
