"""The second operand of a matrix product, brought into the form that the product's kernel reads.

rows     float32, each row padded with zeros to whole units of 64
bytes    int8 in units of 128: four blocks of 32 with a scale each (for weights in blocks of 32)
sums     int8 in units of 256 with one scale, and the sum of every 16 (for weights in blocks of 256)
tiles    float32, the columns of one group taken `tile` at a time, the elements of a tile's columns side by side
"""

from __future__ import annotations

import numpy as np

from graphrt import dtypes
from graphrt.backends.cpu.args import address, claim, row_address, rows, size, stride, word
from graphrt.backends.cpu.dequant import expander
from graphrt.backends.cpu.dot import low_bytes, store_bytes
from graphrt.backends.cpu.grouping import (
    COUNTER,
    FIRST,
    FIRST_TILE,
    IDS,
    LAST,
    SLICE_FIRST,
    SLICE_LAST,
    X_ROW,
    X,
    column_word,
    group_by_batch,
    group_by_expert,
    group_of_tile,
    group_word,
    prepared,
    scratch,
    tile_count,
)
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.jit import Kernel
from graphrt.backends.cpu.memory import load_f32, load_one, store_f32, store_integer, store_one
from graphrt.backends.cpu.simd import absolute, maximum, reduce_add, reduce_max, rint, splat, to_f32, to_i32

PIECE = 256  # elements brought to float32 at a time: a whole number of blocks of every dtype
PIECE_BYTES = 4 * PIECE

# form: (elements, bytes) of a unit
UNITS = {"rows": (64, 256), "bytes": (128, 128 + 128 + 16), "sums": (256, 256 + 64 + 64)}
# Where parts of a unit stand. BYTES_START: 32 int32, each block's eight hold -offset times its sum, then zeros.
BYTES_START, BYTES_SCALES = 128, 256
SUMS_SCALE, SUMS_SUMS = 256, 320


def row_bytes(form: str, elements: int) -> int:
    """Bytes of one prepared row."""
    per_unit, nbytes = UNITS[form]
    return -(-elements // per_unit) * nbytes


@helper
def _group(args, tile, cursors):
    if address(args, IDS):
        group_by_expert(args, tile, cursors)
    else:
        group_by_batch(args, tile)


def group_columns(tile: int) -> Kernel:
    """Native: write the tables of groups and columns."""

    def run(args, ith, nth):
        if ith == 0:
            _group(args, tile, scratch(args, 0))

    return run


def prepare_rows(form: str, offset: int, dtype: str) -> Kernel:
    """Native: write the tables, and x row by row in the form "rows", "bytes" or "sums".

    `offset` is what the kernel's codes are too great by, as unsigned numbers, in the form "bytes".
    """
    piece_of = _piece_of(dtype)
    per_unit, unit_bytes = UNITS[form]
    write = {"rows": _copy_unit, "bytes": _bytes_unit(offset), "sums": _sums_unit}[form]

    def run(args, ith, nth):
        if ith == 0:
            _group(args, 1, scratch(args, 0))
        width = size(args, X, 3)
        pieces = (width + PIECE - 1) // PIECE
        pitch = (width + per_unit - 1) // per_unit * unit_bytes
        total = rows(args, X) * pieces
        buffer = scratch(args, ith)
        item = claim(word(args, COUNTER), 4)
        while item < total:
            for at in range(item, min(item + 4, total)):
                row, start = at // pieces, at % pieces * PIECE
                count = min(PIECE, width - start)
                source = piece_of(row_address(args, X, row), stride(args, X, 3), start, count, buffer)
                target = prepared(args) + row * pitch + start // per_unit * unit_bytes
                for unit in range((count + per_unit - 1) // per_unit):
                    write(source + 4 * per_unit * unit, target + unit_bytes * unit)
            item = claim(word(args, COUNTER), 4)

    return run


def prepare_tiles(tile: int, dtype: str) -> Kernel:
    """Native: write a slice of x as tiles of `tile` columns, nothing past a group's end; the tables must be there."""
    piece_of = _piece_of(dtype)

    def run(args, ith, nth):
        first_element, last_element = word(args, SLICE_FIRST), word(args, SLICE_LAST)
        depth = last_element - first_element
        buffer = scratch(args, ith)
        item = claim(word(args, COUNTER), 1)
        while item < tile_count(args):
            group = group_of_tile(args, item)
            first = group_word(args, group, FIRST) + (item - group_word(args, group, FIRST_TILE)) * tile
            for column in range(first, min(first + tile, group_word(args, group, LAST))):
                target = prepared(args) + item * depth * tile * 4 + (column - first) * 4
                row = row_address(args, X, column_word(args, column, X_ROW))
                for start in range(first_element, last_element, PIECE):
                    count = min(PIECE, last_element - start)
                    source = piece_of(row, stride(args, X, 3), start, count, buffer)
                    for k in range(count):
                        place = target + (start - first_element + k) * tile * 4
                        store_one(place, "f32", load_one(source + 4 * k, "f32"))
            item = claim(word(args, COUNTER), 1)

    return run


def _piece_of(dtype: str):
    """A helper that gives the address of `count` elements as float32, dense, with zeros up to PIECE."""
    expand, block = expander(dtype), dtypes.get(dtype).block
    is_float32 = dtype == "f32"

    @helper
    def piece_of(row, step, start, count, buffer):
        source = row + start // block * step
        if is_float32 and step == 4 and count == PIECE:
            return source
        if count < PIECE:
            for i in range(0, PIECE, 16):
                store_f32(buffer + 4 * i, "f32", splat(np.float32(0), 16))
        expand(source, step, count, buffer)
        return buffer

    return piece_of


@helper
def _copy_unit(source, target):
    for i in range(0, 64, 16):
        store_f32(target + 4 * i, "f32", load_f32(source + 4 * i, "f32", 16))


@helper
def _scale(largest, poison):
    """The scale that maps `largest` to 127, and its inverse, 0 for a block of zeros; `poison` is 0, or NaN."""
    inverse = np.float32(127) / largest if largest > np.float32(1e-30) else np.float32(0)
    return largest / np.float32(127) + poison, inverse


def _bytes_unit(offset: int):
    @helper
    def bytes_unit(source, target):
        zero = splat(np.int32(0), 8)
        for block in range(4):
            a = load_f32(source + 128 * block, "f32", 16)
            b = load_f32(source + 128 * block + 64, "f32", 16)
            largest = reduce_max(maximum(absolute(a), absolute(b)))
            scale, inverse = _scale(largest, reduce_add((a - a) + (b - b)))
            first, second = to_i32(rint(a * inverse)), to_i32(rint(b * inverse))
            store_bytes(target + 32 * block, low_bytes(first))
            store_bytes(target + 32 * block + 16, low_bytes(second))
            store_one(target + BYTES_SCALES + 4 * block, "f32", scale)
            store_bytes(target + BYTES_START + 32 * block, zero)
            store_integer(target + BYTES_START + 32 * block, "i32", -offset * np.int64(reduce_add(first + second)))

    return bytes_unit


@helper
def _sums_unit(source, target):
    largest, poison = splat(np.float32(0), 16), splat(np.float32(0), 16)
    for i in range(0, 256, 16):
        v = load_f32(source + 4 * i, "f32", 16)
        largest = maximum(largest, absolute(v))
        poison = poison + (v - v)
    scale, inverse = _scale(reduce_max(largest), reduce_add(poison))
    for i in range(0, 256, 16):
        rounded = rint(load_f32(source + 4 * i, "f32", 16) * inverse)
        codes = to_i32(rounded)
        store_bytes(target + i, low_bytes(codes))
        store_one(target + SUMS_SUMS + i // 4, "f32", reduce_add(to_f32(codes)))
    store_one(target + SUMS_SCALE, "f32", scale)
