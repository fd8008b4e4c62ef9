"""Dot products of weights in blocks of 32 with x in int8: four blocks, a unit of the form "bytes", at a time.

`unpack(weights)` gives the codes of four blocks as two vectors of 64: the first 16 elements of each, and the other 16.
Sums of products then have four lanes to a block. Codes are signed, or unsigned and `offset` too great.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from graphrt.backends.cpu.codes import (
    SIGNED,
    add_dot_signed,
    gather_bytes,
    scale_of_exponents,
    sign_start,
    spread_byte,
    spread_f16,
    spread_fifth_bits,
)
from graphrt.backends.cpu.dequant import IQ4_LEVELS, MXFP4_LEVELS
from graphrt.backends.cpu.dot import dot_unsigned, load_bytes, load_i32, lookup
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.memory import load_f32
from graphrt.backends.cpu.prepare import BYTES_SCALES, BYTES_SUMS
from graphrt.backends.cpu.simd import fma, to_f32


@dataclass(frozen=True)
class Blocks:
    """How the codes of one dtype are read.

    Args:
        nbytes: of a block.
        unpack: helper, see above.
        offset: what unsigned codes are too great by, or SIGNED.
        scale: what the block starts with: "f16"; "f16 minimum", an f16 and another that is added to every element;
            or "exponent", a byte.
    """

    nbytes: int
    unpack: Any
    offset: int = SIGNED
    scale: str = "f16"


def byte_units(blocks: Blocks) -> tuple[Any, Any]:
    """`load` and `add` (see vecdot.Units) of a dtype in blocks of 32."""
    return _loader(blocks), _adder(blocks)


def _loader(blocks: Blocks) -> Any:
    unpack, nbytes = blocks.unpack, blocks.nbytes

    @helper
    def load(weights, step, scratch):
        low, high = unpack(weights)
        return low, high, spread_f16(weights, 0, nbytes)

    @helper
    def load_with_minimum(weights, step, scratch):
        low, high = unpack(weights)
        return low, high, spread_f16(weights, 0, nbytes), spread_f16(weights, 2, nbytes)

    @helper
    def load_with_exponent(weights, step, scratch):
        low, high = unpack(weights)
        return low, high, scale_of_exponents(spread_byte(weights, nbytes))

    return {"f16": load, "f16 minimum": load_with_minimum, "exponent": load_with_exponent}[blocks.scale]


def _adder(blocks: Blocks) -> Any:
    offset = blocks.offset

    @helper
    def add_signed(unit, x, total):
        low, high, scales = unit
        sums = add_dot_signed(sign_start(load_i32(x + BYTES_SUMS, 16)), low, load_bytes(x, 64))
        sums = add_dot_signed(sums, high, load_bytes(x + 64, 64))
        return fma(to_f32(sums), scales * load_f32(x + BYTES_SCALES, "f32", 16), total)

    @helper
    def add_unsigned(unit, x, total):
        low, high, scales = unit
        sums = dot_unsigned(load_i32(x + BYTES_SUMS, 16) * offset, low, load_bytes(x, 64))
        sums = dot_unsigned(sums, high, load_bytes(x + 64, 64))
        return fma(to_f32(sums), scales * load_f32(x + BYTES_SCALES, "f32", 16), total)

    @helper
    def add_with_minimum(unit, x, total):
        low, high, scales, minima = unit
        negative, x_scales = load_i32(x + BYTES_SUMS, 16), load_f32(x + BYTES_SCALES, "f32", 16)
        sums = dot_unsigned(dot_unsigned(negative - negative, low, load_bytes(x, 64)), high, load_bytes(x + 64, 64))
        total = fma(to_f32(sums), scales * x_scales, total)
        return total - to_f32(negative) * (minima * x_scales)

    if blocks.scale == "f16 minimum":
        return add_with_minimum
    return add_signed if offset == SIGNED else add_unsigned


@helper
def _q8_0(weights):
    return gather_bytes(weights, 2, 34), gather_bytes(weights, 18, 34)


@helper
def _q4_0(weights):
    packed = gather_bytes(weights, 2, 18)
    return packed & 15, packed >> 4


@helper
def _q4_1(weights):
    packed = gather_bytes(weights, 4, 20)
    return packed & 15, packed >> 4


@helper
def _q5_0(weights):
    packed = gather_bytes(weights, 6, 22)
    low, high = spread_fifth_bits(weights + 2, 22)
    return packed & 15 | low, packed >> 4 | high


@helper
def _q5_1(weights):
    packed = gather_bytes(weights, 8, 24)
    low, high = spread_fifth_bits(weights + 4, 24)
    return packed & 15 | low, packed >> 4 | high


@helper
def _iq4_nl(weights):
    packed = gather_bytes(weights, 2, 18)
    return lookup(packed & 15, IQ4_LEVELS), lookup(packed >> 4, IQ4_LEVELS)


@helper
def _mxfp4(weights):
    packed = gather_bytes(weights, 1, 17)
    return lookup(packed & 15, MXFP4_LEVELS), lookup(packed >> 4, MXFP4_LEVELS)


BLOCKS_OF_32 = {
    "q8_0": Blocks(34, _q8_0),
    "q4_0": Blocks(18, _q4_0, offset=8),
    "q4_1": Blocks(20, _q4_1, offset=0, scale="f16 minimum"),
    "q5_0": Blocks(22, _q5_0, offset=16),
    "q5_1": Blocks(24, _q5_1, offset=0, scale="f16 minimum"),
    "iq4_nl": Blocks(18, _iq4_nl),
    "mxfp4": Blocks(17, _mxfp4, scale="exponent"),
}
