"""Functions of float32 vectors: exponentials and what follows from them, to a few units in the last place.

The polynomials are minimax fits of the function named beside them; NaN goes through every function.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import types
from numba.extending import intrinsic

from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.simd import (
    absolute,
    bits_as_f32,
    bits_as_i32,
    broadcast,
    call,
    constant,
    fma,
    mangled,
    select,
)

ZERO, HALF, ONE, TWO = (np.float32(value) for value in (0.0, 0.5, 1.0, 2.0))
LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH = np.float32(0.693359375)  # few bits, so that a whole number times it is exact
LN2_LOW = np.float32(-2.12194440e-4)
EXP_LOWEST, EXP_HIGHEST = np.float32(-104.0), np.float32(89.0)  # beyond: 0, infinity
EXP_NORMAL = np.float32(-88.03)  # 2 to the -127, whose bits as a power of two are those of 0
SHIFTER = np.float32(12582912.0)  # 1.5 · 2²³: adding it leaves a whole number in the low bits
EXPONENT_OF_ONE, MANTISSA_BITS = np.int32(127), np.int32(23)
TANH_NEAR = np.float32(0.625)


@intrinsic
def like(typingctx, vector, value):
    """The float32 `value` in every lane, as many as `vector` has."""

    def codegen(context, builder, signature, values):
        return broadcast(builder, values[1], vector.lanes)

    return vector(vector, types.float32), codegen


def polynomial(coefficients: Sequence[float]):
    """An intrinsic: the polynomial with these coefficients, constant term first, of each lane."""

    @intrinsic
    def evaluate(typingctx, x):
        def codegen(context, builder, signature, values):
            total = constant(x.llvm, coefficients[-1])
            for coefficient in reversed(coefficients[:-1]):
                term = constant(x.llvm, coefficient)
                total = call(builder, f"llvm.fma.{mangled(x.llvm)}", x.llvm, total, values[0], term)
            return total

        return x(x), codegen

    return evaluate


_exp_tail = polynomial([0.49999993, 0.1666652, 0.04166839, 0.00836878, 0.00138145])  # (exp(r) - 1 - r) / r²
_tanh_tail = polynomial([-0.33333284, 0.13331491, -0.0537435, 0.02065058, -0.00571704])  # (tanh(√z) / √z - 1) / z
_atanh_tail = polynomial([0.33333338, 0.19999436, 0.14308518, 0.10712925, 0.12154163])  # (atanh(√z) / √z - 1) / z


@helper
def _power_of_two(shifted):
    """2 to the whole number n, -126 … 127, given n + SHIFTER."""
    return bits_as_f32((bits_as_i32(shifted) + EXPONENT_OF_ONE) << MANTISSA_BITS)


@helper
def exp(x):
    """e to the x: 2 to the n times e to the r, where x = n · ln 2 + r."""
    x = select(x < EXP_LOWEST, like(x, EXP_LOWEST), x)
    x = select(x > EXP_HIGHEST, like(x, EXP_HIGHEST), x)
    n = fma(x, like(x, LOG2_E), like(x, SHIFTER)) - SHIFTER
    r = fma(n, like(x, -LN2_HIGH), x)
    r = fma(n, like(x, -LN2_LOW), r)
    power = fma(_exp_tail(r), r * r, r) + ONE
    # In two steps, since 2 to the n alone leaves the range of normal numbers at both ends.
    half = n * HALF + SHIFTER
    rest = n - (half - SHIFTER) + SHIFTER
    return power * _power_of_two(half) * _power_of_two(rest)


@helper
def exp_below_zero(x):
    """e to the x for x that is not above 0; numbers too small for float32's normal range become 0."""
    x = select(x < EXP_NORMAL, like(x, EXP_NORMAL), x)
    shifted = fma(x, like(x, LOG2_E), like(x, SHIFTER))
    n = shifted - SHIFTER
    r = fma(n, like(x, -LN2_HIGH), x)
    r = fma(n, like(x, -LN2_LOW), r)
    return (fma(_exp_tail(r), r * r, r) + ONE) * _power_of_two(shifted)


@helper
def sigmoid(x):
    """1 / (1 + e to the -x)."""
    return ONE / (exp(ZERO - x) + ONE)


@helper
def tanh(x):
    """The hyperbolic tangent; a polynomial near 0, where 1 - e to the -2|x| would cancel."""
    magnitude = absolute(x)
    e = exp(magnitude * -TWO)
    far = (ONE - e) / (e + ONE)
    far = select(x < ZERO, ZERO - far, far)
    square = x * x
    return select(magnitude < TANH_NEAR, fma(_tanh_tail(square) * square, x, x), far)


@helper
def softplus(x):
    """log(1 + e to the x) = max(x, 0) + log1p(e) with e = e to the -|x|; log1p(e) = 2 atanh(e / (2 + e))."""
    e = exp(ZERO - absolute(x))
    s = e / (e + TWO)
    square = s * s
    tail = fma(_atanh_tail(square) * square, s, s) * TWO
    return select(x > ZERO, x + tail, tail)
