"""Dot products of weights in blocks of 32 with x in int8: four blocks, a unit of the form "bytes", at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphrt.backends.cpu.dequant import IQ4_LEVELS, fifth_bits
from graphrt.backends.cpu.dot import (
    SIGN_OFFSET,
    dot_signed,
    dot_unsigned,
    join,
    load_bytes,
    load_i32,
    load_strided_f16,
    lookup,
    pick,
)
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.memory import load_f32, load_one
from graphrt.backends.cpu.prepare import BYTES_SCALES, BYTES_START
from graphrt.backends.cpu.simd import fma, splat, to_f32

_LANES_01 = (0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1)
_LANES_23 = (2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3)


def byte_units(products: Any, nbytes: int) -> tuple[Any, Any]:
    """`add` and `add_rest` (see vecdot.Units) of a dtype whose blocks have `nbytes` bytes, an f16 scale first.

    `products(first, second, x, start)` multiplies the codes of two blocks with 64 of x; eight int32 lanes to a block.
    """

    @helper
    def add(weights, step, x, total, scratch):
        scales = load_strided_f16(weights, nbytes, 4) * load_f32(x + BYTES_SCALES, "f32", 4)
        low = products(weights, weights + nbytes, x, x + BYTES_START)
        total = fma(to_f32(low), pick(scales, _LANES_01), total)
        high = products(weights + 2 * nbytes, weights + 3 * nbytes, x + 64, x + BYTES_START + 64)
        return fma(to_f32(high), pick(scales, _LANES_23), total)

    @helper
    def add_rest(weights, step, x, total, count, scratch):
        for block in range(count // 32):
            w, start = weights + block * nbytes, x + BYTES_START + 32 * block
            low = to_f32(products(w, w, x + 32 * block, start))
            scale = load_one(w, "f16") * load_one(x + BYTES_SCALES + 4 * block, "f32")
            total = fma(low, join(splat(scale, 8), splat(np.float32(0), 8)), total)
        return total

    return add, add_rest


@helper
def _q8_0(first, second, x, start):
    codes = join(load_bytes(first + 2, 32), load_bytes(second + 2, 32))
    return dot_signed(load_i32(start, 16), codes, load_bytes(x, 64))


_NIBBLE_ORDER = (
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,
    32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47,
    16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
    48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63,
)  # fmt: skip


@helper
def _nibbles(first, second):
    """Twice 16 bytes as 64 nibbles, in the order of their elements: a block's low ones, then its high ones."""
    packed = join(load_bytes(first, 16), load_bytes(second, 16))
    return pick(join(packed & 15, packed >> 4), _NIBBLE_ORDER)


@helper
def _q4_0(first, second, x, start):
    return dot_unsigned(load_i32(start, 16), _nibbles(first + 2, second + 2), load_bytes(x, 64))


@helper
def _q5_0(first, second, x, start):
    high = join(
        join(fifth_bits(first + 2, 0), fifth_bits(first + 2, 16)),
        join(fifth_bits(second + 2, 0), fifth_bits(second + 2, 16)),
    )
    return dot_unsigned(load_i32(start, 16), _nibbles(first + 6, second + 6) | high, load_bytes(x, 64))


@helper
def _iq4_nl(first, second, x, start):
    return dot_signed(load_i32(start, 16), lookup(_nibbles(first + 2, second + 2), IQ4_LEVELS), load_bytes(x, 64))


# dtype: (products, bytes of a block, what the codes are too great by)
BLOCKS_OF_32 = {
    "q8_0": (_q8_0, 34, SIGN_OFFSET),
    "q4_0": (_q4_0, 18, 8),
    "q5_0": (_q5_0, 22, 16),
    "iq4_nl": (_iq4_nl, 18, SIGN_OFFSET),
}
