"""Rows of floats as pairs of int16 in 32-bit words, each row with a scale of its own, and the products of such rows.

Processors with AVX512-VNNI take a word's two products at once, at twice the rate of float32, and sum exactly in int32.
A row is scaled to the norm NORM, so no sum of products of two rows passes 2³¹. Rounding costs less than NORM⁻¹ / 2 of
the product of the norms: about as much as rounding one of the rows to float16.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from graphrt.backends.cpu import host
from graphrt.backends.cpu.dot import store_bytes
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.memory import emit_prefetch, load_f32, load_vector
from graphrt.backends.cpu.simd import (
    F32,
    I1,
    I16,
    I32,
    I64,
    Vector,
    absolute,
    broadcast,
    call,
    constant,
    fma,
    literal,
    maximum,
    reduce_add,
    reduce_max,
    shuffle,
    splat,
    to_f32,
)
from graphrt.backends.cpu.tile import element_bytes, loop, multiply_add

LANES = 16  # words in a vector
NORM = np.float32(32767)
LEAST_SQUARES, MOST_SQUARES = np.float32(1e-28), np.float32(1e38)  # sums of squares that float32 holds well
LEAST_NORM = np.float32(1e-33)  # of a row that does not count as zeros
ZERO, ONE = np.float32(0), np.float32(1)
ROUNDER = np.float32(1.5 * 2**23)  # a sum with it has the other number, rounded to an integer, in its last bits


def has_pairs() -> bool:
    """Whether the present SIMD level multiplies pairs."""
    return host.level().has("avx512vnni")


# ---- from floats to pairs --------------------------------------------------------------------------------------------


@helper
def rounded(vector, factor):
    """Float32 lanes times a factor (lanes too), in whose lower halves the nearest int16 stand."""
    return fma(vector, factor, splat(ROUNDER, LANES))


@intrinsic(prefer_literal=True)
def lower_halves(typingctx, first, second, in_turns):
    """The lower int16 of lanes of two float32 vectors, one after the other, or of both in turns, as words."""
    if literal(in_turns) is None:
        return None
    result = Vector("i32", LANES)

    def codegen(context, builder, signature, values):
        int16 = ir.VectorType(I16, 2 * LANES)
        order = list(range(0, 4 * LANES, 2))
        if literal(in_turns):
            order = [lane + vector for lane in order[:LANES] for vector in (0, 2 * LANES)]
        vectors = [builder.bitcast(each, int16) for each in values[:2]]
        return builder.bitcast(shuffle(builder, *vectors, order), result.llvm)

    return result(first, second, in_turns), codegen


@intrinsic(prefer_literal=True)
def pair_halves(typingctx, first, second, upper):
    """The same for int16 in loaded words: the first half of both vectors' int16, or with `upper` the other one."""
    if literal(upper) is None:
        return None

    def codegen(context, builder, signature, values):
        int16 = ir.VectorType(I16, 2 * LANES)
        start = LANES if literal(upper) else 0
        order = [start + lane + 2 * LANES * vector for lane in range(LANES) for vector in range(2)]
        rows = [builder.bitcast(each, int16) for each in values[:2]]
        return builder.bitcast(shuffle(builder, *rows, order), first.llvm)

    return first(first, first, upper), codegen


@intrinsic
def greater_halves(typingctx, so_far, words):
    """The greater of each unsigned int16 so far and the magnitude of an int16."""

    def codegen(context, builder, signature, values):
        int16 = ir.VectorType(I16, 2 * LANES)
        before, given = (builder.bitcast(each, int16) for each in values)
        magnitude = call(builder, "llvm.abs.v32i16", int16, given, I1(0))
        return builder.bitcast(call(builder, "llvm.umax.v32i16", int16, before, magnitude), so_far.llvm)

    return so_far(so_far, so_far), codegen


@helper
def greatest_half(words):
    """The greatest of all unsigned int16, as float32."""
    low, high = words & np.int32(0xFFFF), words >> np.int32(16)
    return max(reduce_max(to_f32(low)), reduce_max(to_f32(high)))


def factor_finder(lanes, dtype="f32"):
    """A helper: what the integers of a row of a plain dtype are to be multiplied by.

    NaN where the row holds NaN or an infinity. The row's width is a multiple of two vectors' lanes.
    """
    nbytes = element_bytes(dtype)

    @helper
    def find_unusual(row, width, total):
        largest = splat(ZERO, lanes)
        for i in range(0, width, lanes):
            largest = maximum(largest, absolute(load_f32(row + nbytes * i, dtype, lanes)))
        bound = reduce_max(largest) * np.sqrt(np.float32(width))
        bound = total if total != total else bound + ZERO * bound
        return ZERO if bound < LEAST_NORM else bound

    @helper
    def square(row, i, so_far):
        v = load_f32(row + nbytes * i, dtype, lanes)
        return fma(v, v, so_far)

    @helper
    def find_factor(row, width):
        # Several sums, so that one need not wait for the other.
        a, b, c, d = splat(ZERO, lanes), splat(ZERO, lanes), splat(ZERO, lanes), splat(ZERO, lanes)
        whole = width // (4 * lanes) * (4 * lanes)
        for i in range(0, whole, 4 * lanes):
            a, b = square(row, i, a), square(row, i + lanes, b)
            c, d = square(row, i + 2 * lanes, c), square(row, i + 3 * lanes, d)
        if whole < width:
            a, b = square(row, whole, a), square(row, whole + lanes, b)
        total = reduce_add((a + b) + (c + d))
        if LEAST_SQUARES < total < MOST_SQUARES:
            return np.sqrt(total) * (ONE / NORM)
        return find_unusual(row, width, total) * (ONE / NORM)

    return find_factor


def row_packer(lanes, dtype="f32"):
    """A helper: a row of a plain dtype, given its factor, as int16 at `target`, which may be the row itself."""
    nbytes = element_bytes(dtype)

    @helper
    def pack_row(row, width, factor, target):
        to_integers = splat(ONE / factor if factor != ZERO else ZERO, lanes)
        for i in range(0, width, 2 * lanes):
            v = rounded(load_f32(row + nbytes * i, dtype, lanes), to_integers)
            w = rounded(load_f32(row + nbytes * (i + lanes), dtype, lanes), to_integers)
            store_bytes(target + 2 * i, lower_halves(v, w, False))

    return pack_row


# ---- products --------------------------------------------------------------------------------------------------------


def add_products(builder, a, b, total):
    """a.first · b.first + a.second · b.second + total, word by word: int32 vectors."""
    return call(builder, "llvm.x86.avx512.vpdpwssd.512", total.type, total, a, b)


@intrinsic(prefer_literal=True)
def multiply_rows(
    typingctx,
    panel,
    panel_pitch,
    x,
    x_pitch,
    depth,
    target,
    target_pitch,
    row_factors,
    factors,
    onto,
    ahead,
    ahead_pitch,
    vectors,
    columns,
):
    """target[c, r] = factors[c] · row_factors[r] · sum over k < depth of panel[k, r] · x[c, k], added if `onto`.

    Args: panel [depth, vectors · LANES] and x [columns, depth] words, target [columns, vectors · LANES] and both
          factors float32; rows their pitch in bytes apart; ahead [columns, depth] words that are only asked for, line
          by line on the way.  The last two are constants.
    """
    shape = [literal(item) for item in (vectors, columns)]
    if None in shape:
        return None

    def codegen(context, builder, signature, values):
        panel, panel_pitch, x, x_pitch, depth, target, target_pitch, row_factors, factors, onto = values[:10]
        sums = _sums(builder, (panel, panel_pitch), (x, I64(4), x_pitch), depth, *shape, ahead=values[10:12])
        by_row = [load_vector(builder, _after(builder, row_factors, v), F32, LANES) for v in range(shape[0])]
        is_onto, zeros = builder.icmp_signed("!=", onto, I64(0)), constant(by_row[0].type, 0.0)
        for (c, v), total in sums.items():
            place = _after(builder, _row(builder, target, target_pitch, c), v)
            before = builder.select(is_onto, load_vector(builder, place, F32, LANES), zeros)
            factor = builder.fmul(by_row[v], _broadcast_at(builder, factors, c))
            _store(builder, multiply_add(builder, total, factor, before), place)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 12, vectors, columns), codegen


@intrinsic(prefer_literal=True)
def multiply_onto(
    typingctx, panel, panel_pitch, x, x_step, depth, target, target_pitch, rescales, factors, vectors, columns
):
    """target[c, r] = rescales[c] · target[c, r] + factors[c] · sum over k < depth of panel[k, r] · x[k, c].

    Args: as above, but x [depth, columns], rows `x_step` bytes apart.
    """
    shape = [literal(item) for item in (vectors, columns)]
    if None in shape:
        return None

    def codegen(context, builder, signature, values):
        panel, panel_pitch, x, x_step, depth, target, target_pitch, rescales, factors = values[:9]
        sums = _sums(builder, (panel, panel_pitch), (x, x_step, I64(4)), depth, *shape)
        for (c, v), total in sums.items():
            place = _after(builder, _row(builder, target, target_pitch, c), v)
            before = builder.fmul(load_vector(builder, place, F32, LANES), _broadcast_at(builder, rescales, c))
            _store(builder, multiply_add(builder, total, _broadcast_at(builder, factors, c), before), place)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9, vectors, columns), codegen


def _sums(builder, panel, x, depth, vectors, columns, ahead=None):
    """Sums of products of every vector of a panel's rows with every column of x, as float32, by column and vector.

    Args: ahead: address and pitch of words [columns, depth] to ask for on the way.
    """
    (panel, panel_pitch), (x, x_step, x_pitch) = panel, x
    words = ir.VectorType(I32, LANES)
    shifts = [builder.mul(x_pitch, I64(c)) for c in range(columns)]

    def body(k, sums):
        row, x_at = _row(builder, panel, panel_pitch, k), builder.add(x, builder.mul(k, x_step))
        if ahead:
            column, words = builder.urem(k, I64(columns)), builder.udiv(k, I64(columns))
            place = builder.add(_row(builder, *ahead, column), builder.mul(words, I64(4 * columns)))
            emit_prefetch(builder, place)
        vectors_of_row = [load_vector(builder, _after(builder, row, v), I32, LANES) for v in range(vectors)]
        result = []
        for c in range(columns):
            place = builder.inttoptr(builder.add(x_at, shifts[c]), I32.as_pointer())
            one = broadcast(builder, builder.load(place, align=4), LANES)
            result += [add_products(builder, vectors_of_row[v], one, sums[c * vectors + v]) for v in range(vectors)]
        return result

    totals = loop(builder, depth, 1, [constant(words, 0)] * (columns * vectors), body)
    places = [(c, v) for c in range(columns) for v in range(vectors)]
    floats = ir.VectorType(F32, LANES)
    return {place: builder.sitofp(total, floats) for place, total in zip(places, totals, strict=True)}


def _row(builder, start, pitch, number):
    number = I64(number) if isinstance(number, int) else number
    return builder.add(start, builder.mul(pitch, number))


def _after(builder, start, vector: int):
    return builder.add(start, I64(4 * LANES * vector))


def _broadcast_at(builder, start, number: int):
    place = builder.inttoptr(builder.add(start, I64(4 * number)), F32.as_pointer())
    return broadcast(builder, builder.load(place, align=4), LANES)


def _store(builder, value, place):
    builder.store(value, builder.inttoptr(place, value.type.as_pointer()), align=4)
