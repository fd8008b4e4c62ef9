"""The few best of a short row, by passes over its keys: the choice of experts. sort.py ranks rows of any length.

Keys are those of sort.py, int64: the float's bits as a number that grows with it, NaN below all, then the index, so
that no two keys are equal and of equal elements the lower index ranks first. A pass finds the greatest below the last.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.memory import first_lanes, load_f32_first, load_vector, store_integer
from graphrt.backends.cpu.simd import I32, I64, Vector, broadcast, call, constant, literal, mangled, select
from graphrt.backends.cpu.sort import INDEX_BITS, INDEX_MASK, LOWEST, MAGNITUDE

NO_KEY, ABOVE_ALL = np.int64(-(2**63)), np.int64(2**63 - 1)
HIDDEN_KEY = int(np.float32(-np.inf).view(np.int32) ^ np.int32(MAGNITUDE)) << INDEX_BITS  # of -inf, without its index


@intrinsic
def keys_of(typingctx, x, first):
    """The keys of float32 lanes, elements first, first + 1 …"""
    keys = Vector("i64", x.lanes)

    def codegen(context, builder, signature, values):
        words = ir.VectorType(I32, x.lanes)
        number = builder.fadd(values[0], constant(x.llvm, 0.0))  # makes -0 equal to 0
        bits = builder.bitcast(number, words)
        below = builder.icmp_signed("<", bits, constant(words, 0))
        rank = builder.select(below, builder.xor(bits, constant(words, MAGNITUDE)), bits)
        rank = builder.select(builder.fcmp_unordered("uno", number, number), constant(words, LOWEST), rank)
        high = builder.shl(builder.sext(rank, keys.llvm), constant(keys.llvm, INDEX_BITS))
        last = broadcast(builder, builder.sub(I64(INDEX_MASK), values[1]), x.lanes)
        low = builder.sub(last, ir.Constant(keys.llvm, list(range(x.lanes))))
        return builder.or_(high, low)

    return keys(x, types.int64), codegen


@intrinsic(prefer_literal=True)
def load_keys(typingctx, address, lanes):
    """`lanes` keys."""
    if literal(lanes) is None:
        return None

    def codegen(context, builder, signature, values):
        return load_vector(builder, values[0], I64, literal(lanes))

    return Vector("i64", literal(lanes))(types.int64, lanes), codegen


@intrinsic
def store_keys(typingctx, address, keys):
    """Store the lanes."""

    def codegen(context, builder, signature, values):
        builder.store(values[1], builder.inttoptr(values[0], keys.llvm.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, keys), codegen


@intrinsic
def first_keys(typingctx, keys, count):
    """The first `count` keys, then none."""

    def codegen(context, builder, signature, values):
        mask = first_lanes(builder, values[1], keys.lanes)
        return builder.select(mask, values[0], constant(keys.llvm, int(NO_KEY)))

    return keys(keys, types.int64), codegen


@intrinsic(prefer_literal=True)
def every_lane(typingctx, key, lanes):
    """One key in every lane."""
    if literal(lanes) is None:
        return None

    def codegen(context, builder, signature, values):
        return broadcast(builder, values[0], literal(lanes))

    return Vector("i64", literal(lanes))(types.int64, lanes), codegen


@intrinsic
def greatest_lane(typingctx, keys):
    """The greatest key."""

    def codegen(context, builder, signature, values):
        return call(builder, f"llvm.vector.reduce.smax.{mangled(keys.llvm)}", I64, *values)

    return types.int64(keys), codegen


def rank_of(lanes):
    """A helper: the keys of `count` float32 to `keys`, which has room for whole vectors."""

    @helper
    def rank(x, count, keys):
        for i in range(0, count, lanes):
            store_keys(keys + 8 * i, keys_of(load_f32_first(x + 4 * i, "f32", lanes, count - i), i))

    return rank


def best_of(lanes):
    """A helper: the indices of the k best of `count` keys to `target`, best first, as int32.

    It reads whole vectors of keys, past the last one.
    """

    @helper
    def best(keys, count, k, target):
        none, last = every_lane(NO_KEY, lanes), ABOVE_ALL
        whole = count - count % lanes
        for place in range(k):
            limit, top = every_lane(last, lanes), none
            for i in range(0, whole, lanes):
                found = load_keys(keys + 8 * i, lanes)
                found = select(found < limit, found, none)
                top = select(found > top, found, top)
            if whole < count:
                found = first_keys(load_keys(keys + 8 * whole, lanes), count - whole)
                found = select(found < limit, found, none)
                top = select(found > top, found, top)
            last = greatest_lane(top)
            store_integer(target + 4 * place, "i32", INDEX_MASK - (last & INDEX_MASK))

    return best
