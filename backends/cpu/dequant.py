"""Rows of every dtype expanded to float32: the common way into kernels for operands that have no faster one.

`expander(dtype)` gives a helper `expand(source, step, count, target)`: it writes `count` float32 at `target` from
elements (for quantized dtypes: whole blocks) `step` bytes apart. The layouts of the blocks are ggml's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from graphrt import dtypes
from graphrt.backends.cpu.dot import bits_to_bytes, load_bytes, lookup, signed_to_i32, unsigned_to_f32
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.memory import (
    load_f32,
    load_f32_first,
    load_integer,
    load_one,
    store_f32,
    store_f32_first,
    store_one,
)
from graphrt.backends.cpu.simd import bits_as_f32, lane, splat, to_f32

LANES = 16

# ggml's tables of 4-bit codes: iq4_nl's and iq4_xs's levels, and mxfp4's (e2m1, doubled).
IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
MXFP4_LEVELS = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


@cache
def expander(name: str) -> Any:
    """The helper that expands rows of the dtype of that name."""
    dtype = dtypes.get(name)
    if dtype.is_quantized:
        return _expand_blocks(_BLOCKS[name], dtype.block)
    return _expand_plain(name, dtype.nbytes)


def _expand_plain(name: str, nbytes: int) -> Any:
    @helper
    def expand(source, step, count, target):
        if step != nbytes:
            for i in range(count):
                store_one(target + 4 * i, "f32", load_one(source + i * step, name))
            return
        whole = count // LANES * LANES
        for i in range(0, whole, LANES):
            store_f32(target + 4 * i, "f32", load_f32(source + i * nbytes, name, LANES))
        if whole < count:
            rest = load_f32_first(source + whole * nbytes, name, LANES, count - whole)
            store_f32_first(target + 4 * whole, "f32", rest, count - whole)

    return expand


def _expand_blocks(block: Callable[[int, int], None], elements: int) -> Any:
    @helper
    def expand(source, step, count, target):
        for i in range(count // elements):
            block(source + i * step, target + 4 * elements * i)

    return expand


@helper
def _store16(target, codes, scale, offset):
    """16 unsigned codes as codes · scale + offset."""
    store_f32(target, "f32", unsigned_to_f32(codes) * scale + splat(offset, 16))


@helper
def _store16_signed(target, codes, scale):
    """16 signed codes as codes · scale."""
    store_f32(target, "f32", to_f32(signed_to_i32(codes)) * scale)


@helper
def _nibbles(source):
    """16 bytes as 16 low and 16 high nibbles."""
    packed = load_bytes(source, 16)
    return packed & 15, packed >> 4


# ---- 32-element blocks -----------------------------------------------------------------------------------------------


@helper
def _q4_0(block, target):
    scale = load_one(block, "f16")
    low, high = _nibbles(block + 2)
    _store16_signed(target, low - 8, scale)
    _store16_signed(target + 64, high - 8, scale)


@helper
def _q4_1(block, target):
    scale, least = load_one(block, "f16"), load_one(block + 2, "f16")
    low, high = _nibbles(block + 4)
    _store16(target, low, scale, least)
    _store16(target + 64, high, scale, least)


@helper
def fifth_bits(source, first):
    """Bits first … first+15 of the 32 at `source`, each as 0 or 16 in a byte of its own."""
    return bits_to_bytes(load_integer(source + first // 8, "u16")) & 16


@helper
def _q5_0(block, target):
    scale = load_one(block, "f16")
    low, high = _nibbles(block + 6)
    _store16_signed(target, (low | fifth_bits(block + 2, 0)) - 16, scale)
    _store16_signed(target + 64, (high | fifth_bits(block + 2, 16)) - 16, scale)


@helper
def _q5_1(block, target):
    scale, least = load_one(block, "f16"), load_one(block + 2, "f16")
    low, high = _nibbles(block + 8)
    _store16(target, low | fifth_bits(block + 4, 0), scale, least)
    _store16(target + 64, high | fifth_bits(block + 4, 16), scale, least)


@helper
def _q8_0(block, target):
    scale = load_one(block, "f16")
    _store16_signed(target, load_bytes(block + 2, 16), scale)
    _store16_signed(target + 64, load_bytes(block + 18, 16), scale)


@helper
def _iq4_nl(block, target):
    scale = load_one(block, "f16")
    low, high = _nibbles(block + 2)
    _store16_signed(target, lookup(low, IQ4_LEVELS), scale)
    _store16_signed(target + 64, lookup(high, IQ4_LEVELS), scale)


@helper
def mxfp4_scale(block):
    """Half of 2^(e - 127): the levels are doubled. The two least exponents give subnormal numbers."""
    exponent = load_integer(block, "u8")
    bits = 0x00200000 << exponent if exponent < 2 else (exponent - 1) << 23
    return lane(bits_as_f32(splat(np.int32(bits), 1)), 0)


@helper
def _mxfp4(block, target):
    scale = mxfp4_scale(block)
    low, high = _nibbles(block + 1)
    _store16_signed(target, lookup(low, MXFP4_LEVELS), scale)
    _store16_signed(target + 64, lookup(high, MXFP4_LEVELS), scale)


# ---- 256-element blocks ----------------------------------------------------------------------------------------------


@helper
def _q2_k(block, target):
    """scales[16] (4-bit scale, 4-bit minimum), codes[64], d f16, dmin f16."""
    d, least = load_one(block + 80, "f16"), load_one(block + 82, "f16")
    for group in range(16):  # 16 elements share a scale
        packed = load_integer(block + group, "u8")
        source = block + 16 + group // 8 * 32 + group % 2 * 16
        codes = (load_bytes(source, 16) >> np.int8(group % 8 // 2 * 2)) & 3
        _store16(target + 64 * group, codes, d * np.float32(packed & 15), -least * np.float32(packed >> 4))


@helper
def q3_k_scale(scales, group):
    """The 6-bit scale of a group of 16: low nibbles in bytes 0 … 7, high two bits in bytes 8 … 11."""
    low = load_integer(scales + group % 8, "u8") >> (group // 8 * 4) & 15
    high = load_integer(scales + 8 + group % 4, "u8") >> (group // 4 * 2) & 3
    return (low | high << 4) - 32


@helper
def _q3_k(block, target):
    """mask[32] of third bits, codes[64] of two bits, scales[12], d f16."""
    d = load_one(block + 108, "f16")
    for group in range(16):
        source = block + 32 + group // 8 * 32 + group % 2 * 16
        codes = (load_bytes(source, 16) >> np.int8(group % 8 // 2 * 2)) & 3
        third = (load_bytes(block + group % 2 * 16, 16) >> np.int8(group // 2)) & 1
        scale = d * np.float32(q3_k_scale(block + 96, group))
        _store16_signed(target + 64 * group, (codes | third << 2) - 4, scale)


@helper
def k_scale(scales, group):
    """The 6-bit scale and minimum of a group of 32 in q4_k and q5_k, packed into 12 bytes."""
    if group < 4:
        return load_integer(scales + group, "u8") & 63, load_integer(scales + group + 4, "u8") & 63
    low = load_integer(scales + group + 4, "u8")
    scale = low & 15 | load_integer(scales + group - 4, "u8") >> 6 << 4
    return scale, low >> 4 | load_integer(scales + group, "u8") >> 6 << 4


@helper
def _q4_k(block, target):
    """d f16, dmin f16, scales[12], codes[128]."""
    d, least = load_one(block, "f16"), load_one(block + 2, "f16")
    for group in range(8):  # 32 elements share a scale; two groups share 32 bytes, low and high nibbles
        scale, minimum = k_scale(block + 4, group)
        factor, offset = d * np.float32(scale), -least * np.float32(minimum)
        for half in range(2):
            packed = load_bytes(block + 16 + group // 2 * 32 + 16 * half, 16)
            codes = (packed >> np.int8(group % 2 * 4)) & 15
            _store16(target + 128 * group + 64 * half, codes, factor, offset)


@helper
def _q5_k(block, target):
    """d f16, dmin f16, scales[12], high[32] of fifth bits, codes[128]."""
    d, least = load_one(block, "f16"), load_one(block + 2, "f16")
    for group in range(8):
        scale, minimum = k_scale(block + 4, group)
        factor, offset = d * np.float32(scale), -least * np.float32(minimum)
        for half in range(2):
            packed = load_bytes(block + 48 + group // 2 * 32 + 16 * half, 16)
            fifth = (load_bytes(block + 16 + 16 * half, 16) >> np.int8(group)) & 1
            codes = (packed >> np.int8(group % 2 * 4)) & 15 | fifth << 4
            _store16(target + 128 * group + 64 * half, codes, factor, offset)


@helper
def _q6_k(block, target):
    """low[128] nibbles, high[64] of two bits, scales[16] int8, d f16."""
    d = load_one(block + 208, "f16")
    for group in range(16):  # 16 elements share a scale
        half, within = group // 8, group % 8
        low = load_bytes(block + 64 * half + within % 4 * 16, 16) >> np.int8(within // 4 * 4)
        high = load_bytes(block + 128 + 32 * half + within % 2 * 16, 16) >> np.int8(within // 2 * 2)
        scale = d * np.float32(load_integer(block + 192 + group, "i8"))
        _store16_signed(target + 64 * group, (low & 15 | (high & 3) << 4) - 32, scale)


@helper
def iq4_xs_scale(block, group):
    """The 6-bit scale of a group of 32: low nibbles in bytes 4 … 7, high two bits in the word at 2."""
    low = load_integer(block + 4 + group // 2, "u8") >> (group % 2 * 4) & 15
    high = load_integer(block + 2, "u16") >> (group * 2) & 3
    return (low | high << 4) - 32


@helper
def _iq4_xs(block, target):
    """d f16, high scale bits u16, low scale nibbles[4], codes[128]."""
    d = load_one(block, "f16")
    for group in range(8):
        scale = d * np.float32(iq4_xs_scale(block, group))
        low, high = _nibbles(block + 8 + 16 * group)
        _store16_signed(target + 128 * group, lookup(low, IQ4_LEVELS), scale)
        _store16_signed(target + 128 * group + 64, lookup(high, IQ4_LEVELS), scale)


_BLOCKS = {
    "q4_0": _q4_0,
    "q4_1": _q4_1,
    "q5_0": _q5_0,
    "q5_1": _q5_1,
    "q8_0": _q8_0,
    "q2_k": _q2_k,
    "q3_k": _q3_k,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
    "iq4_nl": _iq4_nl,
    "iq4_xs": _iq4_xs,
    "mxfp4": _mxfp4,
}
