"""Dot products of weights in blocks of 256 with x in int8: a block and a unit of the prepared form "sums" at a time.

`unpack(weights)` gives the codes of a block as four vectors of 64, in the order of the elements, signed or unsigned
(0 … 63) and `offset` too great; and the factors of every 16 elements as 16 bytes. Sums of products times factors stay
whole numbers to the end of the block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from graphrt.backends.cpu.codes import (
    SIGNED,
    add_dot_signed,
    broadcast_f16,
    constant_bytes,
    dot_scaled,
    shift_words,
    shifted_halves,
    sign_start,
    unsigned_to_i32,
)
from graphrt.backends.cpu.dequant import IQ4_LEVELS
from graphrt.backends.cpu.dot import bytes_of_word, join, load_bytes, load_i32, lookup, pick, signed_to_i32
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.memory import load_integer, load_one
from graphrt.backends.cpu.prepare import SUMS_SCALE, SUMS_SUMS
from graphrt.backends.cpu.simd import fma, splat, to_f32


@dataclass(frozen=True)
class Blocks:
    """How the codes of one dtype are read.

    Args:
        unpack: helper, see above; where the dtype has minima, it gives them last, as bytes for every 16 elements.
        scale: where the f16 stands that multiplies the factors.
        offset: what unsigned codes are too great by, or SIGNED.
        minimum: where the f16 stands that multiplies the minima, or None.
    """

    unpack: Any
    scale: int
    offset: int = 0
    minimum: int | None = None


def sum_units(blocks: Blocks) -> tuple[Any, Any]:
    """`load` and `add` (see vecdot.Units) of a dtype in blocks of 256."""
    if blocks.minimum is not None:
        return _with_minima(blocks)
    return _signed(blocks) if blocks.offset == SIGNED else _with_offset(blocks)


def _with_offset(blocks: Blocks) -> tuple[Any, Any]:
    unpack, scale, offset = blocks.unpack, blocks.scale, blocks.offset

    @helper
    def load(weights, step, scratch):
        a, b, c, d, factors = unpack(weights)
        return a, b, c, d, factors, signed_to_i32(factors) * offset, broadcast_f16(weights + scale, 16)

    @helper
    def add(unit, x, total):
        a, b, c, d, factors, offsets, scale = unit
        sums = dot_scaled(offsets * load_i32(x + SUMS_SUMS, 16), a, load_bytes(x, 64), factors, 0, True)
        sums = dot_scaled(sums, b, load_bytes(x + 64, 64), factors, 1, True)
        sums = dot_scaled(sums, c, load_bytes(x + 128, 64), factors, 2, True)
        sums = dot_scaled(sums, d, load_bytes(x + 192, 64), factors, 3, True)
        return fma(to_f32(sums) * scale, splat(load_one(x + SUMS_SCALE, "f32"), 16), total)

    return load, add


def _with_minima(blocks: Blocks) -> tuple[Any, Any]:
    unpack, scale, minimum = blocks.unpack, blocks.scale, blocks.minimum

    @helper
    def load(weights, step, scratch):
        a, b, c, d, factors, minima = unpack(weights)
        scales, least = broadcast_f16(weights + scale, 16), broadcast_f16(weights + minimum, 16)
        return a, b, c, d, factors, unsigned_to_i32(minima), scales, least

    @helper
    def add(unit, x, total):
        a, b, c, d, factors, minima, scales, least = unit
        sums = dot_scaled(splat(np.int32(0), 16), a, load_bytes(x, 64), factors, 0, False)
        sums = dot_scaled(sums, b, load_bytes(x + 64, 64), factors, 1, False)
        sums = dot_scaled(sums, c, load_bytes(x + 128, 64), factors, 2, False)
        sums = dot_scaled(sums, d, load_bytes(x + 192, 64), factors, 3, False)
        negative = to_f32(minima * load_i32(x + SUMS_SUMS, 16)) * least
        return fma(fma(to_f32(sums), scales, negative), splat(load_one(x + SUMS_SCALE, "f32"), 16), total)

    return load, add


def _signed(blocks: Blocks) -> tuple[Any, Any]:
    """Codes up to 127 either way: products of 64 are multiplied by their factors as int32."""
    unpack, scale = blocks.unpack, blocks.scale

    @helper
    def load(weights, step, scratch):
        a, b, c, d, factors = unpack(weights)
        return a, b, c, d, signed_to_i32(factors), broadcast_f16(weights + scale, 16)

    @helper
    def add(unit, x, total):
        a, b, c, d, factors, scale = unit
        zero = factors - factors
        sums = sign_start(load_i32(x + SUMS_SUMS, 16)) * factors
        sums = sums + add_dot_signed(zero, a, load_bytes(x, 64)) * pick(factors, _WORDS_0)
        sums = sums + add_dot_signed(zero, b, load_bytes(x + 64, 64)) * pick(factors, _WORDS_1)
        sums = sums + add_dot_signed(zero, c, load_bytes(x + 128, 64)) * pick(factors, _WORDS_2)
        sums = sums + add_dot_signed(zero, d, load_bytes(x + 192, 64)) * pick(factors, _WORDS_3)
        return fma(to_f32(sums) * scale, splat(load_one(x + SUMS_SCALE, "f32"), 16), total)

    return load, add


_HALVES_IN_TURN = (
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,
    32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47,
    16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
    48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63,
)  # fmt: skip
_WORDS_0 = (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)
_WORDS_1 = (4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7)
_WORDS_2 = (8, 8, 8, 8, 9, 9, 9, 9, 10, 10, 10, 10, 11, 11, 11, 11)
_WORDS_3 = (12, 12, 12, 12, 13, 13, 13, 13, 14, 14, 14, 14, 15, 15, 15, 15)


# ---- scales and minima for every 32: q4_k, q5_k ----------------------------------------------------------------------


@helper
def _k_scales(block):
    """The eight 6-bit scales and minima, each twice; their twelve bytes follow two f16.

    The first four of each are the low six bits of four bytes, the others' low four bits are nibbles of the last four,
    and their high two bits top the first eight bytes.
    """
    packed = load_bytes(block, 16)
    low = shift_words(pick(packed, _LOW_BITS), (0, 0, 0, 4)) & constant_bytes(_LOW_MASK)
    high = shift_words(pick(packed, _HIGH_BITS), (0, 2, 0, 2)) & constant_bytes(_HIGH_MASK)
    both = low | high
    return pick(both, _FACTORS), pick(both, _MINIMA)


_LOW_BITS = (4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15)
_HIGH_BITS = (4, 5, 6, 7, 4, 5, 6, 7, 8, 9, 10, 11, 8, 9, 10, 11)
_LOW_MASK = (63, 63, 63, 63, 15, 15, 15, 15, 63, 63, 63, 63, 15, 15, 15, 15)
_HIGH_MASK = (0, 0, 0, 0, 48, 48, 48, 48, 0, 0, 0, 0, 48, 48, 48, 48)
_FACTORS = (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7)
_MINIMA = (8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15)


@helper
def _nibbles(codes):
    """32 bytes of nibbles: the low ones are a group of 32, the high ones the next."""
    return shifted_halves(load_bytes(codes, 32), 0, 4) & 15


@helper
def _q4_k(weights):
    factors, minima = _k_scales(weights)
    codes = weights + 16
    return _nibbles(codes), _nibbles(codes + 32), _nibbles(codes + 64), _nibbles(codes + 96), factors, minima


@helper
def _q5_k(weights):
    factors, minima = _k_scales(weights)
    high, codes = load_bytes(weights + 16, 32), weights + 48
    a = _nibbles(codes) | (shifted_halves(high, 0, 1) & 1) << 4
    b = _nibbles(codes + 32) | (shifted_halves(high, 2, 3) & 1) << 4
    c = _nibbles(codes + 64) | (shifted_halves(high, 4, 5) & 1) << 4
    d = _nibbles(codes + 96) | (shifted_halves(high, 6, 7) & 1) << 4
    return a, b, c, d, factors, minima


# ---- a scale for every 16: q2_k, q3_k, q6_k --------------------------------------------------------------------------


@helper
def _pairs(packed):
    """32 bytes of four times two bits: two groups of 32, and the next two."""
    return shifted_halves(packed, 0, 2) & 3, shifted_halves(packed, 4, 6) & 3


@helper
def _q2_k(weights):
    scales = load_bytes(weights, 16)
    a, b = _pairs(load_bytes(weights + 16, 32))
    c, d = _pairs(load_bytes(weights + 48, 32))
    return a, b, c, d, scales & 15, scales >> 4


@helper
def _q3_k_scales(scales):
    """The sixteen 6-bit scales: nibbles in eight bytes, high two bits in four."""
    low, high = load_bytes(scales, 8), load_bytes(scales + 8, 4)
    tops = join(join(high & 3, high >> 2 & 3), join(high >> 4 & 3, high >> 6))
    return (join(low & 15, low >> 4) | tops << 4) - 32


@helper
def _q3_k(weights):
    mask = load_bytes(weights, 32)
    a, b = _pairs(load_bytes(weights + 32, 32))
    c, d = _pairs(load_bytes(weights + 64, 32))
    a = a | (shifted_halves(mask, 0, 1) & 1) << 2
    b = b | (shifted_halves(mask, 2, 3) & 1) << 2
    c = c | (shifted_halves(mask, 4, 5) & 1) << 2
    d = d | (shifted_halves(mask, 6, 7) & 1) << 2
    return a, b, c, d, _q3_k_scales(weights + 96)


@helper
def _q6_k_codes(low, high):
    """64 bytes of nibbles and 32 bytes of four times two bits: elements 0 … 63 of a half block, and 64 … 127."""
    nibbles = load_bytes(low, 64)
    first, second = _pairs(load_bytes(high, 32))
    return nibbles & 15 | first << 4, nibbles >> 4 | second << 4


@helper
def _q6_k(weights):
    a, b = _q6_k_codes(weights, weights + 128)
    c, d = _q6_k_codes(weights + 64, weights + 160)
    return a, b, c, d, load_bytes(weights + 192, 16)


# ---- codes that stand for levels -------------------------------------------------------------------------------------


@helper
def _iq4_xs_scales(weights):
    """The eight 6-bit scales, each twice: low nibbles in bytes 4 … 7, high two bits in the word at 2."""
    low, high = load_integer(weights + 4, "u32"), load_integer(weights + 2, "u16")
    low = (low | low << 16) & 0x0000FFFF0000FFFF
    low = (low | low << 8) & 0x00FF00FF00FF00FF
    low = (low | low << 4) & 0x0F0F0F0F0F0F0F0F
    high = (high | high << 24) & 0x000000FF000000FF
    high = (high | high << 12) & 0x000F000F000F000F
    high = (high | high << 6) & 0x0303030303030303
    return pick((bytes_of_word(low) | bytes_of_word(high) << 4) - 32, _FACTORS)


@helper
def _levels(codes):
    """Two blocks of 32, each 16 bytes: its first half in the low nibbles, the other in the high ones."""
    packed = load_bytes(codes, 32)
    return lookup(pick(join(packed & 15, packed >> 4), _HALVES_IN_TURN), IQ4_LEVELS)


@helper
def _iq4_xs(weights):
    codes = weights + 8
    return _levels(codes), _levels(codes + 32), _levels(codes + 64), _levels(codes + 96), _iq4_xs_scales(weights)


BLOCKS_OF_256 = {
    "q2_k": Blocks(_q2_k, scale=80, minimum=82),
    "q3_k": Blocks(_q3_k, scale=108, offset=4),
    "q4_k": Blocks(_q4_k, scale=0, minimum=2),
    "q5_k": Blocks(_q5_k, scale=0, minimum=2),
    "q6_k": Blocks(_q6_k, scale=208, offset=32),
    "iq4_xs": Blocks(_iq4_xs, scale=0, offset=SIGNED),
}
