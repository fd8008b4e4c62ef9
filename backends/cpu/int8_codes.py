"""x in int8: codes, scales and sums of blocks of float32 (see int8_form.py)."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from graphrt.backends.cpu.int8_form import (
    FEW_FIRST_SUM,
    FEW_SCALE,
    FEW_SECOND_SUM,
    FEW_SUM,
    X_FIRST_SUM,
    X_SCALE,
    X_SUM,
    bias,
)
from graphrt.backends.cpu.memory import load_vector
from graphrt.backends.cpu.simd import F32, I8, I32, I64, broadcast, call, constant, literal
from graphrt.backends.cpu.tile import multiply_add

# Added to a float of small magnitude, this leaves the nearest whole number in the low bits; the lowest byte is 0.
ROUNDING = 1.5 * 2**23
ROUNDING_BITS = 0x4B400000
_LEAST = 2.0**-100  # a block of lesser numbers has codes 0

_WORDS, _FLOATS, _BYTES = ir.VectorType(I32, 16), ir.VectorType(F32, 16), ir.VectorType(I8, 16)


@intrinsic(prefer_literal=True)
def write_codes(typingctx, source, target, sums):
    """Write a block: of 32 float32. Its scale is not finite where one of them is not, and so are results then.

    Args: sums: a constant, whether to write sums too; they take half of the time, and only least values need them.
    """
    if literal(sums) is None:
        return None

    def codegen(context, builder, signature, values):
        source, target, _ = values
        halves, scale = _rounded(builder, source, target, bias())
        _store(builder, builder.add(target, I64(X_SCALE)), scale)
        if literal(sums):
            first, second = (_sum(builder, each, bias()) for each in halves)
            both = builder.sitofp(builder.add(first, second), F32)
            _store(builder, builder.add(target, I64(X_SUM)), builder.fmul(scale, both))
            _store(builder, builder.add(target, I64(X_FIRST_SUM)), builder.fmul(scale, builder.sitofp(first, F32)))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, sums), codegen


@intrinsic
def write_codes_for_few(typingctx, source, target):
    """Write a block in the form for few columns: of 32 float32."""

    def codegen(context, builder, signature, values):
        source, target = values
        halves, scale = _rounded(builder, source, target, 0)
        first, second = (_sum(builder, each, 0) for each in halves)
        numbers = [builder.sitofp(number, F32) for number in (builder.add(first, second), first, second)]
        for at, number in zip((FEW_SCALE, FEW_SUM, FEW_FIRST_SUM, FEW_SECOND_SUM), (scale, *numbers), strict=True):
            _store(builder, builder.add(target, I64(at)), number)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


def _rounded(builder, source, target, shift: int):
    """Store the codes of 32 float32, and `shift`; gives their bits, of which `_sum` makes sums, and their scale."""
    halves = [load_vector(builder, builder.add(source, I64(64 * half)), F32, 16) for half in range(2)]
    largest = _largest_magnitude(builder, halves)
    is_usable = builder.fcmp_ordered(">", largest, F32(_LEAST))
    inverse = broadcast(builder, builder.select(is_usable, builder.fdiv(F32(127.0), largest), F32(0.0)), 16)
    words = []
    for number, half in enumerate(halves):
        moved = multiply_add(builder, half, inverse, constant(_FLOATS, ROUNDING + shift))
        words.append(builder.bitcast(moved, _WORDS))
        _store(builder, builder.add(target, I64(16 * number)), builder.trunc(words[-1], _BYTES))
    return words, builder.fmul(largest, F32(1 / 127))


def _sum(builder, words, shift: int):
    """The sum of codes, given as the bits of floats that ROUNDING and the shift were added to."""
    codes = builder.sub(words, constant(_WORDS, ROUNDING_BITS + shift))
    return call(builder, "llvm.vector.reduce.add.v16i32", I32, codes)


def _largest_magnitude(builder, vectors):
    """Compared as whole numbers, which puts infinity above all numbers, and NaN above that."""
    bits = [builder.and_(builder.bitcast(each, _WORDS), constant(_WORDS, 0x7FFFFFFF)) for each in vectors]
    both = call(builder, "llvm.umax.v16i32", _WORDS, *bits)
    return builder.bitcast(call(builder, "llvm.vector.reduce.umax.v16i32", I32, both), F32)


def _store(builder, address, value):
    builder.store(value, builder.inttoptr(address, value.type.as_pointer()), align=4)
