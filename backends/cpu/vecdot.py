"""Dot products of a row of weights with a prepared row of x, one unit at a time, for products with few columns.

`Units.add(weights, step, x, total, scratch)` adds the products of one unit to `total`, a vector of 16 partial sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from graphrt import dtypes
from graphrt.backends.cpu.dequant import expander
from graphrt.backends.cpu.dot import (
    SIGN_OFFSET,
    bytes_of_word,
    dot_signed,
    dot_unsigned,
    join,
    load_bytes,
    load_i32,
    load_strided_f16,
    pick,
    signed_to_i32,
    unsigned_to_f32,
)
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.memory import load_f32, load_f32_first, load_integer, load_one
from graphrt.backends.cpu.prepare import BYTES_SCALES, BYTES_START, SUMS_SCALE, SUMS_SUMS
from graphrt.backends.cpu.simd import fma, splat, to_f32


@dataclass(frozen=True)
class Units:
    """How rows of one weight dtype are multiplied.

    Args:
        form: of the prepared x.
        elements: of a unit.
        add: helper for a whole unit of weights, `step` bytes between elements or blocks.
        add_rest: helper for the last `count` elements of a row that is no whole number of units.
        many: columns from which expanding the weights to float32 for tiles of x is faster (measured).
        offset: of the codes, for the prepared x (see prepare_rows).
    """

    form: str
    elements: int
    add: Any
    add_rest: Any
    many: int
    offset: int = 0


@cache
def units_of(name: str, dense: bool) -> Units:
    """The way to multiply rows of the dtype of that name; `dense` says whether a row's elements lie side by side."""
    if dense and name in _BY_BYTES:
        codes, nbytes, offset = _BY_BYTES[name]
        return Units("bytes", 128, *_byte_units(codes, nbytes), many=9, offset=offset)
    if dense and name in _BY_SUMS:
        return Units("sums", 256, _BY_SUMS[name], _no_rest, many=13)
    if dense and name in ("f32", "f16", "bf16"):
        return Units("rows", 64, *_float_units(name), many=5)
    return Units("rows", max(64, dtypes.get(name).block), *_expanded_units(name), many=2)


@helper
def _no_rest(weights, step, x, total, count, scratch):
    return total


def _float_units(name: str):
    nbytes = dtypes.get(name).nbytes

    @helper
    def add(weights, step, x, total, scratch):
        for i in range(0, 64, 16):
            total = fma(load_f32(weights + i * nbytes, name, 16), load_f32(x + 4 * i, "f32", 16), total)
        return total

    @helper
    def add_rest(weights, step, x, total, count, scratch):
        for i in range(0, count, 16):
            w = load_f32_first(weights + i * nbytes, name, 16, count - i)
            total = fma(w, load_f32(x + 4 * i, "f32", 16), total)
        return total

    return add, add_rest


def _expanded_units(name: str):
    expand = expander(name)
    elements = max(64, dtypes.get(name).block)

    @helper
    def add(weights, step, x, total, scratch):
        expand(weights, step, elements, scratch)
        for i in range(0, elements, 16):
            total = fma(load_f32(scratch + 4 * i, "f32", 16), load_f32(x + 4 * i, "f32", 16), total)
        return total

    @helper
    def add_rest(weights, step, x, total, count, scratch):
        expand(weights, step, count, scratch)
        for i in range(0, count, 16):
            w = load_f32_first(scratch + 4 * i, "f32", 16, count - i)
            total = fma(w, load_f32(x + 4 * i, "f32", 16), total)
        return total

    return add, add_rest


# ---- blocks of 32 against bytes with a scale for every 32 ------------------------------------------------------------

_LANES_01 = (0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1)
_LANES_23 = (2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3)


def _byte_units(products: Any, nbytes: int):
    """Units of four blocks of `nbytes` bytes; `products(first, second, x, start)` multiplies two blocks with x."""

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
def _q4_0(first, second, x, start):
    packed = join(load_bytes(first + 2, 16), load_bytes(second + 2, 16))
    codes = pick(join(packed & 15, packed >> 4), _NIBBLE_ORDER)
    return dot_unsigned(load_i32(start, 16), codes, load_bytes(x, 64))


@helper
def _zeros():
    return splat(np.int32(0), 16)


# ---- blocks of 256 against bytes with sums ---------------------------------------------------------------------------

_HALVES_01 = (0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1)
_HALVES_23 = (2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3)
_HALVES_45 = (4, 4, 4, 4, 4, 4, 4, 4, 5, 5, 5, 5, 5, 5, 5, 5)
_HALVES_67 = (6, 6, 6, 6, 6, 6, 6, 6, 7, 7, 7, 7, 7, 7, 7, 7)
_TWICE = (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7)
_QUARTERS_0 = (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)
_QUARTERS_1 = (4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7)
_QUARTERS_2 = (8, 8, 8, 8, 9, 9, 9, 9, 10, 10, 10, 10, 11, 11, 11, 11)
_QUARTERS_3 = (12, 12, 12, 12, 13, 13, 13, 13, 14, 14, 14, 14, 15, 15, 15, 15)


@helper
def _k_scales(scales):
    """The eight 6-bit scales and minima of q4_k and q5_k as float32."""
    a, b, c = load_integer(scales, "u32"), load_integer(scales + 4, "u32"), load_integer(scales + 8, "u32")
    factors = a & 0x3F3F3F3F | (c & 0x0F0F0F0F | (a >> 6 & 0x03030303) << 4) << 32
    minima = b & 0x3F3F3F3F | (c >> 4 & 0x0F0F0F0F | (b >> 6 & 0x03030303) << 4) << 32
    return unsigned_to_f32(bytes_of_word(factors)), unsigned_to_f32(bytes_of_word(minima))


@helper
def _q4_k_products(codes, x):
    """32 bytes of nibbles: the low ones are a group of 32, the high ones the next."""
    packed = load_bytes(codes, 32)
    return to_f32(dot_unsigned(_zeros(), join(packed & 15, packed >> 4), load_bytes(x, 64)))


@helper
def _q4_k(weights, step, x, total, scratch):
    factors, minima = _k_scales(weights + 4)
    scale = load_one(x + SUMS_SCALE, "f32")
    products = _q4_k_products(weights + 16, x) * pick(factors, _HALVES_01)
    products = fma(_q4_k_products(weights + 48, x + 64), pick(factors, _HALVES_23), products)
    products = fma(_q4_k_products(weights + 80, x + 128), pick(factors, _HALVES_45), products)
    products = fma(_q4_k_products(weights + 112, x + 192), pick(factors, _HALVES_67), products)
    least = pick(minima, _TWICE) * load_f32(x + SUMS_SUMS, "f32", 16)
    total = fma(products, splat(load_one(weights, "f16") * scale, 16), total)
    return fma(least, splat(-load_one(weights + 2, "f16") * scale, 16), total)


@helper
def _q6_k_codes(low, high):
    """64 bytes of nibbles and 32 bytes of four times two bits: elements 0 … 63 of a half block, and 64 … 127."""
    nibbles, pairs = load_bytes(low, 64), load_bytes(high, 32)
    first = nibbles & 15 | join(pairs & 3, pairs >> 2 & 3) << 4
    second = nibbles >> 4 | join(pairs >> 4 & 3, pairs >> 6) << 4
    return first, second


@helper
def _q6_k(weights, step, x, total, scratch):
    factors = to_f32(signed_to_i32(load_bytes(weights + 192, 16)))
    a, b = _q6_k_codes(weights, weights + 128)
    c, d = _q6_k_codes(weights + 64, weights + 160)
    products = to_f32(dot_unsigned(_zeros(), a, load_bytes(x, 64))) * pick(factors, _QUARTERS_0)
    products = fma(to_f32(dot_unsigned(_zeros(), b, load_bytes(x + 64, 64))), pick(factors, _QUARTERS_1), products)
    products = fma(to_f32(dot_unsigned(_zeros(), c, load_bytes(x + 128, 64))), pick(factors, _QUARTERS_2), products)
    products = fma(to_f32(dot_unsigned(_zeros(), d, load_bytes(x + 192, 64))), pick(factors, _QUARTERS_3), products)
    # Codes are 32 too great.
    products = fma(factors * load_f32(x + SUMS_SUMS, "f32", 16), splat(np.float32(-32), 16), products)
    return fma(products, splat(load_one(weights + 208, "f16") * load_one(x + SUMS_SCALE, "f32"), 16), total)


_BY_BYTES = {"q8_0": (_q8_0, 34, SIGN_OFFSET), "q4_0": (_q4_0, 18, 8)}
_BY_SUMS = {"q4_k": _q4_k, "q6_k": _q6_k}
