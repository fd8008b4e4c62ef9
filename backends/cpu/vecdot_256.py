"""Dot products of weights in blocks of 256 with x in int8: a block and a unit of the prepared form "sums" at a time."""

from __future__ import annotations

import numpy as np

from graphrt.backends.cpu.dot import (
    bytes_of_word,
    dot_unsigned,
    join,
    load_bytes,
    pick,
    signed_to_i32,
    unsigned_to_f32,
)
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.memory import load_f32, load_integer, load_one
from graphrt.backends.cpu.prepare import SUMS_SCALE, SUMS_SUMS
from graphrt.backends.cpu.simd import fma, splat, to_f32

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
def _dot(codes, x):
    """64 codes 0 … 63 with 64 of x, as 16 float32 sums of four."""
    return to_f32(dot_unsigned(splat(np.int32(0), 16), codes, load_bytes(x, 64)))


@helper
def _by_32(a, b, c, d, x, factors):
    """Products of four times 64 codes; a factor for every 32 of them."""
    products = _dot(a, x) * pick(factors, _HALVES_01)
    products = fma(_dot(b, x + 64), pick(factors, _HALVES_23), products)
    products = fma(_dot(c, x + 128), pick(factors, _HALVES_45), products)
    return fma(_dot(d, x + 192), pick(factors, _HALVES_67), products)


@helper
def _by_16(a, b, c, d, x, factors):
    """Products of four times 64 codes; a factor for every 16 of them."""
    products = _dot(a, x) * pick(factors, _QUARTERS_0)
    products = fma(_dot(b, x + 64), pick(factors, _QUARTERS_1), products)
    products = fma(_dot(c, x + 128), pick(factors, _QUARTERS_2), products)
    return fma(_dot(d, x + 192), pick(factors, _QUARTERS_3), products)


@helper
def _sums(x):
    return load_f32(x + SUMS_SUMS, "f32", 16)


@helper
def _scaled(half, x):
    """The f16 at `half` times the scale of x, in every lane."""
    return splat(load_one(half, "f16") * load_one(x + SUMS_SCALE, "f32"), 16)


# ---- scales and minima for every 32: q4_k, q5_k ----------------------------------------------------------------------


@helper
def _k_scales(scales):
    """The eight 6-bit scales and minima as float32."""
    a, b, c = load_integer(scales, "u32"), load_integer(scales + 4, "u32"), load_integer(scales + 8, "u32")
    factors = a & 0x3F3F3F3F | (c & 0x0F0F0F0F | (a >> 6 & 0x03030303) << 4) << 32
    minima = b & 0x3F3F3F3F | (c >> 4 & 0x0F0F0F0F | (b >> 6 & 0x03030303) << 4) << 32
    return unsigned_to_f32(bytes_of_word(factors)), unsigned_to_f32(bytes_of_word(minima))


@helper
def _add_k(weights, x, total, products, minima):
    """Products times d, less minima times dmin times the sums of x."""
    total = fma(products, _scaled(weights, x), total)
    return total - pick(minima, _TWICE) * _sums(x) * _scaled(weights + 2, x)


@helper
def _nibbles(codes):
    """32 bytes of nibbles: the low ones are a group of 32, the high ones the next."""
    packed = load_bytes(codes, 32)
    return join(packed & 15, packed >> 4)


@helper
def _q4_k(weights, step, x, total, scratch):
    factors, minima = _k_scales(weights + 4)
    codes = weights + 16
    a, b, c, d = _nibbles(codes), _nibbles(codes + 32), _nibbles(codes + 64), _nibbles(codes + 96)
    return _add_k(weights, x, total, _by_32(a, b, c, d, x, factors), minima)


@helper
def _q5_k(weights, step, x, total, scratch):
    factors, minima = _k_scales(weights + 4)
    high, codes = load_bytes(weights + 16, 32), weights + 48
    a = _nibbles(codes) | join(high & 1, high >> 1 & 1) << 4
    b = _nibbles(codes + 32) | join(high >> 2 & 1, high >> 3 & 1) << 4
    c = _nibbles(codes + 64) | join(high >> 4 & 1, high >> 5 & 1) << 4
    d = _nibbles(codes + 96) | join(high >> 6 & 1, high >> 7) << 4
    return _add_k(weights, x, total, _by_32(a, b, c, d, x, factors), minima)


# ---- a scale for every 16: q2_k, q3_k, q6_k --------------------------------------------------------------------------


@helper
def _pairs(source):
    """32 bytes of four times two bits: two groups of 32, and the next two."""
    packed = load_bytes(source, 32)
    return join(packed & 3, packed >> 2 & 3), join(packed >> 4 & 3, packed >> 6)


@helper
def _q2_k(weights, step, x, total, scratch):
    scales = load_bytes(weights, 16)
    a, b = _pairs(weights + 16)
    c, d = _pairs(weights + 48)
    products = _by_16(a, b, c, d, x, unsigned_to_f32(scales & 15))
    total = fma(products, _scaled(weights + 80, x), total)
    return total - unsigned_to_f32(scales >> 4) * _sums(x) * _scaled(weights + 82, x)


@helper
def _q3_k_scales(scales):
    """The sixteen 6-bit scales as float32: nibbles in eight bytes, high two bits in four."""
    low, high = load_bytes(scales, 8), load_bytes(scales + 8, 4)
    tops = join(join(high & 3, high >> 2 & 3), join(high >> 4 & 3, high >> 6))
    return to_f32(signed_to_i32((join(low & 15, low >> 4) | tops << 4) - 32))


@helper
def _q3_k(weights, step, x, total, scratch):
    factors, mask = _q3_k_scales(weights + 96), load_bytes(weights, 32)
    a, b = _pairs(weights + 32)
    c, d = _pairs(weights + 64)
    a = a | join(mask & 1, mask >> 1 & 1) << 2
    b = b | join(mask >> 2 & 1, mask >> 3 & 1) << 2
    c = c | join(mask >> 4 & 1, mask >> 5 & 1) << 2
    d = d | join(mask >> 6 & 1, mask >> 7) << 2
    # Codes are 4 too great.
    products = _by_16(a, b, c, d, x, factors) - factors * _sums(x) * np.float32(4)
    return fma(products, _scaled(weights + 108, x), total)


@helper
def _q6_k_codes(low, high):
    """64 bytes of nibbles and 32 bytes of four times two bits: elements 0 … 63 of a half block, and 64 … 127."""
    nibbles = load_bytes(low, 64)
    first, second = _pairs(high)
    return nibbles & 15 | first << 4, nibbles >> 4 | second << 4


@helper
def _q6_k(weights, step, x, total, scratch):
    factors = to_f32(signed_to_i32(load_bytes(weights + 192, 16)))
    a, b = _q6_k_codes(weights, weights + 128)
    c, d = _q6_k_codes(weights + 64, weights + 160)
    # Codes are 32 too great.
    products = _by_16(a, b, c, d, x, factors) - factors * _sums(x) * np.float32(32)
    return fma(products, _scaled(weights + 208, x), total)


BLOCKS_OF_256 = {"q2_k": _q2_k, "q3_k": _q3_k, "q4_k": _q4_k, "q5_k": _q5_k, "q6_k": _q6_k}
