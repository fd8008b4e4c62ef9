"""The second operand of a matrix product, brought into the form that the product's kernel reads.

rows     float32, each row padded with zeros to whole units of 64
bytes    int8 in units of 128: four blocks of 32 with a scale each (for weights in blocks of 32); the first 16 of each
         block stand side by side, then the other 16 of each
sums     int8 in units of 256 with one scale (for weights in blocks of 256)
few      int8 in units of 32 (for interleaved weights; see int8_form.py)

"bytes" and "sums" hold minus the sums of x, which weights whose codes have an offset or a minimum need.
"""

from __future__ import annotations

import numpy as np

from graphrt import dtypes
from graphrt.backends.cpu.args import address, claim, row_address, rows, size, stride, word
from graphrt.backends.cpu.dequant import expander
from graphrt.backends.cpu.dot import dot_unsigned, join, low_bytes, pick, store_bytes
from graphrt.backends.cpu.grouping import (
    COUNTER,
    IDS,
    X,
    group_by_batch,
    group_by_expert,
    prepared,
    scratch,
)
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.int8_codes import write_codes_for_few
from graphrt.backends.cpu.int8_form import FEW_BYTES
from graphrt.backends.cpu.jit import Kernel
from graphrt.backends.cpu.memory import load_f32, store_f32, store_one
from graphrt.backends.cpu.simd import bits_as_f32, bits_as_i32, fma, lane, select, splat

PIECE = 256  # elements brought to float32 at a time: a whole number of blocks of every dtype
PIECE_BYTES = 4 * PIECE

# form: (elements, bytes) of a unit
UNITS = {"rows": (64, 256), "bytes": (128, 128 + 64 + 64), "sums": (256, 256 + 64 + 64), "few": (32, FEW_BYTES)}
# Where parts of a unit stand. Each block of "bytes" has four lanes of 16: its scale in every one, and sums whose
# total is minus the sum of the block. "sums" has minus the sum of every 16.
BYTES_SUMS, BYTES_SCALES = 128, 192
SUMS_SUMS, SUMS_SCALE = 256, 320


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


def prepare_rows(form: str, dtype: str) -> Kernel:
    """Native: write the tables, and x row by row in that form."""
    write = {"rows": _copy_unit, "bytes": _bytes_unit, "sums": _sums_unit, "few": _few_unit}[form]
    prepare = unit_writer(dtype, *UNITS[form], write)

    def run(args, ith, nth):
        if ith == 0:
            _group(args, 1, scratch(args, 0))
        prepare(args, ith)

    return run


def unit_writer(dtype: str, per_unit: int, unit_bytes: int, write):
    """A helper by which threads share x's rows; it calls write(source, target) for each unit of elements, as float32.

    Args:
        dtype: of x.
        per_unit, unit_bytes: elements of a unit, and its bytes in the prepared x.
    """
    piece_of = piece_expander(dtype)

    @helper
    def prepare(args, ith):
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

    return prepare


def piece_expander(dtype: str):
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


_MAGNITUDE = 0x7FFFFFFF  # the bits of a float32 but its sign; as integers, those of NaN are above those of infinity
_ROUNDING = np.float32(3 << 22)  # added to a small number: the sum's low bits are the number, rounded to nearest even
_SWAP_HALVES = (8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)
_LOW_HALVES = (0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23)
_HIGH_HALVES = (8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31)
_LOW_QUARTERS = (0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27)
_HIGH_QUARTERS = (4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31)
_SWAP_QUARTERS = (4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)
_SWAP_PAIRS = (2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
_SWAP_NEIGHBOURS = (1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14)
_EVEN = (0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
_ODD = (1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)


@helper
def _magnitude(source):
    """The bits of the magnitudes of 16 float32."""
    return bits_as_i32(load_f32(source, "f32", 16)) & _MAGNITUDE


@helper
def _larger(a, b):
    return select(a > b, a, b)


@helper
def _scales(largest):
    """The scales that map `largest` to 127, and their inverses, 0 for blocks of zeros; not finite if x is not."""
    top = bits_as_f32(largest)
    zero = splat(np.float32(0), 16)
    return top / np.float32(127), select(top > np.float32(1e-30), splat(np.float32(127), 16) / top, zero)


@helper
def _code(source, inverse):
    """16 of x as int8; garbage where they are not finite, for which their scale makes up."""
    return low_bytes(bits_as_i32(fma(load_f32(source, "f32", 16), inverse, splat(_ROUNDING, 16))))


@helper
def _bytes_unit(source, target):
    a = _larger(_magnitude(source), _magnitude(source + 64))
    b = _larger(_magnitude(source + 128), _magnitude(source + 192))
    c = _larger(_magnitude(source + 256), _magnitude(source + 320))
    d = _larger(_magnitude(source + 384), _magnitude(source + 448))
    ab, cd = join(a, b), join(c, d)
    ab = _larger(pick(ab, _LOW_HALVES), pick(ab, _HIGH_HALVES))
    cd = _larger(pick(cd, _LOW_HALVES), pick(cd, _HIGH_HALVES))
    both = join(ab, cd)
    largest = _larger(pick(both, _LOW_QUARTERS), pick(both, _HIGH_QUARTERS))
    largest = _larger(largest, pick(largest, _SWAP_PAIRS))
    scales, inverses = _scales(_larger(largest, pick(largest, _SWAP_NEIGHBOURS)))
    i0, i1 = splat(lane(inverses, 0), 16), splat(lane(inverses, 4), 16)
    i2, i3 = splat(lane(inverses, 8), 16), splat(lane(inverses, 12), 16)
    low = join(join(_code(source, i0), _code(source + 128, i1)), join(_code(source + 256, i2), _code(source + 384, i3)))
    high = join(
        join(_code(source + 64, i0), _code(source + 192, i1)), join(_code(source + 320, i2), _code(source + 448, i3))
    )
    store_bytes(target, low)
    store_bytes(target + 64, high)
    store_bytes(target + BYTES_SUMS, _fours(low) + _fours(high))
    store_f32(target + BYTES_SCALES, "f32", scales)


@helper
def _codes64(source, inverse):
    return join(
        join(_code(source, inverse), _code(source + 64, inverse)),
        join(_code(source + 128, inverse), _code(source + 192, inverse)),
    )


@helper
def _sums_unit(source, target):
    largest = splat(np.int32(0), 16)
    for i in range(0, 1024, 64):
        largest = _larger(largest, _magnitude(source + i))
    largest = _larger(largest, pick(largest, _SWAP_HALVES))
    largest = _larger(largest, pick(largest, _SWAP_QUARTERS))
    largest = _larger(largest, pick(largest, _SWAP_PAIRS))
    scales, inverse = _scales(_larger(largest, pick(largest, _SWAP_NEIGHBOURS)))
    a, b = _codes64(source, inverse), _codes64(source + 256, inverse)
    c, d = _codes64(source + 512, inverse), _codes64(source + 768, inverse)
    store_bytes(target, a)
    store_bytes(target + 64, b)
    store_bytes(target + 128, c)
    store_bytes(target + 192, d)
    ab, cd = join(_fours(a), _fours(b)), join(_fours(c), _fours(d))
    pairs = join(pick(ab, _EVEN) + pick(ab, _ODD), pick(cd, _EVEN) + pick(cd, _ODD))
    store_bytes(target + SUMS_SUMS, pick(pairs, _EVEN) + pick(pairs, _ODD))
    store_one(target + SUMS_SCALE, "f32", lane(scales, 0))


@helper
def _few_unit(source, target):
    write_codes_for_few(source, target)


@helper
def _fours(codes):
    """Minus the sums of every four of 64 codes."""
    zero = splat(np.int32(0), 16)
    return zero - dot_unsigned(zero, splat(np.int8(1), 64), codes)
