"""Pairs of bfloat16 in 32-bit words, and their dot products, which processors with AVX512-BF16 take at twice the rate.

A word's low half is the first of its pair. Vectors of words travel as float32 vectors, whose bits they are.
"""

from __future__ import annotations

from llvmlite import ir
from numba.extending import intrinsic

from graphrt.backends.cpu import host
from graphrt.backends.cpu.simd import F32, call, shuffle

LANES = 16  # words in a vector


class _BrainType(ir.Type):
    """LLVM's bfloat, which llvmlite has no class for."""

    intrinsic_name = "bf16"

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BrainType)

    def __hash__(self) -> int:
        return hash(_BrainType)


_BF16 = _BrainType()
_FLOATS, _PAIRS = ir.VectorType(F32, LANES), ir.VectorType(_BF16, 2 * LANES)


def has_pairs() -> bool:
    """Whether the present SIMD level multiplies pairs."""
    return host.level().has("avx512bf16")


def add_products(builder, a, b, total):
    """a.first · b.first + a.second · b.second + total, word by word: a float32 vector."""
    pairs = [builder.bitcast(each, _PAIRS) for each in (a, b)]
    return call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", _FLOATS, total, *pairs)


def _rounded(builder, first, second):
    """Two float32 vectors as one of bfloat16, rounded to nearest even, laid end to end."""
    return call(builder, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", _PAIRS, second, first)


@intrinsic
def pack(typingctx, first, second):
    """Two vectors laid end to end, as words of neighbours."""

    def codegen(context, builder, signature, values):
        return builder.bitcast(_rounded(builder, *values), _FLOATS)

    return first(first, first), codegen


@intrinsic
def interleave(typingctx, first, second):
    """Words of a lane of the first vector and the same lane of the second."""

    def codegen(context, builder, signature, values):
        both = _rounded(builder, *values)
        order = [lane + LANES * half for lane in range(LANES) for half in range(2)]
        return builder.bitcast(shuffle(builder, both, both, order), _FLOATS)

    return first(first, first), codegen
