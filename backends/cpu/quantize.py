"""Rows of float32 written as any dtype: the way back from dequant.py.

`writer(dtype)` gives a helper `write(source, count, target, step)`: it reads `count` dense float32 at `source` and
writes elements (for quantized dtypes: whole blocks of 32) `step` bytes apart. Codes are those of ggml's reference.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from graphrt import dtypes
from graphrt.backends.cpu.dequant import MXFP4_LEVELS
from graphrt.backends.cpu.dot import low_bytes, store_bytes
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.memory import (
    load_f32,
    load_f32_first,
    load_one,
    store_f32,
    store_f32_first,
    store_integer,
    store_one,
)
from graphrt.backends.cpu.simd import I64, absolute, maximum, minimum, reduce_max, select, splat, to_i32

LANES = 16
BLOCK = 32
ZERO, HALF = np.float32(0), np.float32(0.5)


@cache
def writer(name: str) -> Any:
    """The helper that writes rows of the dtype of that name."""
    if not dtypes.get(name).is_quantized:
        return _write_plain(name, dtypes.get(name).nbytes)
    return _write_blocks(_BLOCKS[name])


def _write_plain(name: str, nbytes: int) -> Any:
    @helper
    def write(source, count, target, step):
        if step != nbytes:
            for i in range(count):
                store_one(target + i * step, name, load_one(source + 4 * i, "f32"))
            return
        whole = count // LANES * LANES
        for i in range(0, whole, LANES):
            store_f32(target + i * nbytes, name, load_f32(source + 4 * i, "f32", LANES))
        if whole < count:
            rest = load_f32_first(source + 4 * whole, "f32", LANES, count - whole)
            store_f32_first(target + whole * nbytes, name, rest, count - whole)

    return write


def _write_blocks(block: Any) -> Any:
    @helper
    def write(source, count, target, step):
        for i in range(count // BLOCK):
            block(source + 4 * BLOCK * i, target + i * step)

    return write


@helper
def _halves(source):
    """A block's 32 values as two vectors."""
    return load_f32(source, "f32", LANES), load_f32(source + 4 * LANES, "f32", LANES)


@helper
def _inverse(scale):
    return np.float32(1) / scale if scale != ZERO else ZERO


@helper
def _extreme(source):
    """The value of greatest magnitude, of equal ones the first, with its sign."""
    a, b = _halves(source)
    magnitude = reduce_max(maximum(absolute(a), absolute(b)))
    for i in range(BLOCK):
        value = load_one(source + 4 * i, "f32")
        if abs(value) == magnitude:
            return value
    return magnitude


@helper
def _codes(values, scale, bias, most):
    """Values · scale + bias, rounded down and limited to `most`, as int32."""
    return to_i32(minimum(values * scale + bias, splat(most, LANES)))


@intrinsic
def mask_bits(typingctx, mask):
    """A mask's lanes as the low bits of an int64, lane 0 lowest."""

    def codegen(context, builder, signature, values):
        return builder.zext(builder.bitcast(values[0], ir.IntType(mask.lanes)), I64)

    return types.int64(mask), codegen


@helper
def _store_nibbles(target, low, high):
    """16 bytes: the codes' low four bits side by side."""
    store_bytes(target, low_bytes((low & 15) | ((high & 15) << 4)))


@helper
def _store_fifth_bits(target, low, high):
    """Four bytes: the fifth bit of 32 codes."""
    store_integer(target, "i32", mask_bits(low > 15) | (mask_bits(high > 15) << 16))


@helper
def _q8_0(source, block):
    a, b = _halves(source)
    scale = reduce_max(maximum(absolute(a), absolute(b))) / np.float32(127)
    inverse = _inverse(scale)
    store_one(block, "f16", scale)
    for half in range(2):
        values = (b if half else a) * inverse
        away = select(values < ZERO, values - HALF, values + HALF)
        store_bytes(block + 2 + LANES * half, low_bytes(to_i32(away)))


@helper
def _q4_0(source, block):
    a, b = _halves(source)
    scale = _extreme(source) / np.float32(-8)
    inverse, bias, most = _inverse(scale), np.float32(8.5), np.float32(15)
    store_one(block, "f16", scale)
    _store_nibbles(block + 2, _codes(a, inverse, bias, most), _codes(b, inverse, bias, most))


@helper
def _q5_0(source, block):
    a, b = _halves(source)
    scale = _extreme(source) / np.float32(-16)
    inverse, bias, most = _inverse(scale), np.float32(16.5), np.float32(31)
    low, high = _codes(a, inverse, bias, most), _codes(b, inverse, bias, most)
    store_one(block, "f16", scale)
    _store_fifth_bits(block + 2, low, high)
    _store_nibbles(block + 6, low, high)


@helper
def _q4_1(source, block):
    a, b = _halves(source)
    least = ZERO - reduce_max(maximum(ZERO - a, ZERO - b))
    scale = (reduce_max(maximum(a, b)) - least) / np.float32(15)
    inverse, most = _inverse(scale), np.float32(15)
    store_one(block, "f16", scale)
    store_one(block + 2, "f16", least)
    _store_nibbles(block + 4, _codes(a - least, inverse, HALF, most), _codes(b - least, inverse, HALF, most))


@helper
def _q5_1(source, block):
    a, b = _halves(source)
    least = ZERO - reduce_max(maximum(ZERO - a, ZERO - b))
    scale = (reduce_max(maximum(a, b)) - least) / np.float32(31)
    inverse, most = _inverse(scale), np.float32(31)
    low, high = _codes(a - least, inverse, HALF, most), _codes(b - least, inverse, HALF, most)
    store_one(block, "f16", scale)
    store_one(block + 2, "f16", least)
    _store_fifth_bits(block + 4, low, high)
    _store_nibbles(block + 8, low, high)


@helper
def _mxfp4_code(value, scale):
    """The number of the level nearest to value / scale; of two at the same distance the lower number."""
    best, least = 0, np.float32(np.inf)
    for code in range(16):
        error = abs(scale * np.float32(MXFP4_LEVELS[code]) - value)
        if error < least:
            best, least = code, error
    return best


@helper
def _mxfp4(source, block):
    magnitude = abs(_extreme(source))
    exponent = 0
    scale = np.float32(2.0**-128)
    if magnitude > ZERO:
        exponent = int(np.floor(np.log2(np.float64(magnitude)))) - 2 + 127
        scale = np.float32(2.0 ** (exponent - 128))
    store_integer(block, "i8", exponent)
    for i in range(BLOCK // 2):
        low = _mxfp4_code(load_one(source + 4 * i, "f32"), scale)
        high = _mxfp4_code(load_one(source + 4 * (i + BLOCK // 2), "f32"), scale)
        store_integer(block + 1 + i, "i8", low | (high << 4))


_BLOCKS = {"q8_0": _q8_0, "q4_0": _q4_0, "q4_1": _q4_1, "q5_0": _q5_0, "q5_1": _q5_1, "mxfp4": _mxfp4}
