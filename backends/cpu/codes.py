"""Codes and scales of quantized blocks, gathered into vectors; and their products with x in int8.

What dot.py is to 64 bytes, this is to blocks: four blocks of 32 side by side, or one of 256 with its sixteen scales.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from graphrt.backends.cpu import host
from graphrt.backends.cpu.dot import (
    SIGN_OFFSET,
    emit_dpbusd,
    has_unsigned_by_signed,
    join_lanes,
    multiply_pairs,
    plain_dot,
    register_bytes,
    split_lanes,
)
from graphrt.backends.cpu.memory import emit_prefetch, load_vector, widen
from graphrt.backends.cpu.simd import I8, I16, I32, I64, Vector, broadcast, call, constant, literal, shuffle

BLOCKS = 4  # of 32 elements, side by side
SIGNED = -1  # in place of an offset: codes are signed


@intrinsic
def prefetch(typingctx, address):
    """Ask for the cache line at an address, which need not be valid, to come to the first-level cache."""

    def codegen(context, builder, signature, values):
        emit_prefetch(builder, values[0], level=1)
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic(prefer_literal=True)
def gather_bytes(typingctx, address, at, step):
    """16 bytes `at` bytes into each of four blocks of `step` bytes, end to end."""
    if None in (literal(at), literal(step)):
        return None

    def codegen(context, builder, signature, values):
        places = [literal(at) + literal(step) * block for block in range(BLOCKS)]
        if host.level().has("avx512vbmi") and literal(step) < 32:
            return _picked(builder, values[0], places, literal(step) * BLOCKS)
        return join_lanes(builder, [load_vector(builder, builder.add(values[0], I64(at)), I8, 16) for at in places])

    return Vector("i8", 64)(types.int64, at, step), codegen


def _picked(builder, address, places: list[int], nbytes: int):
    """16 bytes at each of the places, out of the unit's first and last 64 bytes."""
    last = nbytes - 64
    words = [load_vector(builder, builder.add(address, I64(start)), I8, 64) for start in (0, last)]
    wanted = [place + i for place in places for i in range(16)]
    return shuffle(builder, *words, [byte if byte < 64 else 64 + byte - last for byte in wanted])


@intrinsic(prefer_literal=True)
def spread_f16(typingctx, address, at, step):
    """The f16 `at` bytes into each of four blocks of `step` bytes, as float32, each in four lanes."""
    if None in (literal(at), literal(step)):
        return None

    def codegen(context, builder, signature, values):
        places = [literal(at) + literal(step) * block for block in range(BLOCKS)]
        if host.level().name == "avx512":
            halves = _spread_words(builder, values[0], places, literal(step) * BLOCKS)
        else:
            halves = ir.Constant(ir.VectorType(I16, BLOCKS), ir.Undefined)
            for block, place in enumerate(places):
                pointer = builder.inttoptr(builder.add(values[0], I64(place)), I16.as_pointer())
                halves = builder.insert_element(halves, builder.load(pointer, align=1), I32(block))
            halves = shuffle(builder, halves, halves, _SPREAD)
        return widen(builder, halves, "f16")

    return Vector("f32", 16)(types.int64, at, step), codegen


_SPREAD = [lane // 4 for lane in range(16)]


def _spread_words(builder, address, places: list[int], nbytes: int):
    """The 16-bit words at `places`, each four times, out of two loads of 64 bytes within the unit's `nbytes` bytes."""
    second = min([nbytes - 64, *(place for place in places if place > 62)])
    words = [load_vector(builder, builder.add(address, I64(start)), I16, 32) for start in (0, second)]
    lanes = [place // 2 if place <= 62 else 32 + (place - second) // 2 for place in places]
    return shuffle(builder, *words, [lanes[lane] for lane in _SPREAD])


@intrinsic(prefer_literal=True)
def spread_byte(typingctx, address, step):
    """The byte at the address, and of the three blocks after, as unsigned int32, each in four lanes."""
    if literal(step) is None:
        return None

    def codegen(context, builder, signature, values):
        vector = ir.Constant(ir.VectorType(I8, BLOCKS), ir.Undefined)
        for block in range(BLOCKS):
            pointer = builder.inttoptr(builder.add(values[0], I64(literal(step) * block)), I8.as_pointer())
            vector = builder.insert_element(vector, builder.load(pointer), I32(block))
        return builder.zext(shuffle(builder, vector, vector, _SPREAD), ir.VectorType(I32, 16))

    return Vector("i32", 16)(types.int64, step), codegen


@intrinsic(prefer_literal=True)
def spread_fifth_bits(typingctx, address, step):
    """The 32 bits at the address, and of the three blocks after, as bytes 0 or 16: first 16 of each, and the others."""
    if literal(step) is None:
        return None
    result = Vector("i8", 64)
    bit_of_byte = constant(result.llvm, [1 << i % 8 for i in range(64)])

    def codegen(context, builder, signature, values):
        words = [builder.add(values[0], I64(literal(step) * block)) for block in range(BLOCKS)]
        bits = join_lanes(builder, [load_vector(builder, word, I8, 4) for word in words])
        halves = []
        for half in range(2):
            byte_of_element = [4 * (i // 16) + 2 * half + i % 16 // 8 for i in range(64)]
            masked = builder.and_(shuffle(builder, bits, bits, byte_of_element), bit_of_byte)
            is_set = builder.icmp_unsigned("!=", masked, constant(result.llvm, 0))
            halves.append(builder.select(is_set, constant(result.llvm, 16), constant(result.llvm, 0)))
        return context.make_tuple(builder, signature.return_type, halves)

    return types.UniTuple(result, 2)(types.int64, step), codegen


@intrinsic(prefer_literal=True)
def shifted_halves(typingctx, vector, first, second):
    """32 bytes twice, shifted right by `first` and by `second` bits; bits of neighbours come in, for masks to clear."""
    if None in (literal(first), literal(second)):
        return None

    def codegen(context, builder, signature, values):
        words = builder.bitcast(values[0], ir.VectorType(I32, 8))
        both = shuffle(builder, words, words, list(range(8)) * 2)
        counts = [literal(first)] * 8 + [literal(second)] * 8
        shifted = builder.lshr(both, constant(both.type, counts)) if any(counts) else both
        return builder.bitcast(shifted, ir.VectorType(I8, 64))

    return Vector("i8", 64)(vector, first, second), codegen


@intrinsic(prefer_literal=True)
def shift_words(typingctx, vector, counts):
    """Every four bytes shifted right by as many bits as the tuple says; bits of neighbours come in."""
    found = [item.literal_value for item in counts.types] if hasattr(counts, "types") else None
    if found is None:
        return None

    def codegen(context, builder, signature, values):
        words = builder.bitcast(values[0], ir.VectorType(I32, len(found)))
        return builder.bitcast(builder.lshr(words, constant(words.type, found)), vector.llvm)

    return vector(vector, counts), codegen


@intrinsic(prefer_literal=True)
def constant_bytes(typingctx, entries):
    """A tuple of constants as a vector of bytes."""
    found = [item.literal_value for item in entries.types] if hasattr(entries, "types") else None
    if found is None:
        return None
    result = Vector("i8", len(found))
    return result(entries), lambda context, builder, signature, values: constant(result.llvm, found)


@intrinsic
def unsigned_to_i32(typingctx, vector):
    """Unsigned lanes as int32."""
    result = Vector("i32", vector.lanes)
    return result(vector), lambda context, builder, signature, values: builder.zext(values[0], result.llvm)


@intrinsic(prefer_literal=True)
def broadcast_f16(typingctx, address, lanes):
    """One f16 as float32 in every lane."""
    if literal(lanes) is None:
        return None

    def codegen(context, builder, signature, values):
        half = builder.load(builder.inttoptr(values[0], I16.as_pointer()), align=1)
        return widen(builder, broadcast(builder, half, literal(lanes)), "f16")

    return Vector("f32", literal(lanes))(types.int64, lanes), codegen


@intrinsic
def scale_of_exponents(typingctx, exponents):
    """2^(e - 128) of each int32 lane e, 0 … 255; the two least are subnormal numbers."""
    result = Vector("f32", exponents.lanes)

    def codegen(context, builder, signature, values):
        (e,) = values
        normal = builder.shl(builder.sub(e, constant(e.type, 1)), constant(e.type, 23))
        tiny = builder.shl(constant(e.type, 0x00200000), builder.and_(e, constant(e.type, 1)))
        bits = builder.select(builder.icmp_unsigned("<", e, constant(e.type, 2)), tiny, normal)
        return builder.bitcast(bits, result.llvm)

    return result(exponents), codegen


# ---- products --------------------------------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def dot_scaled(typingctx, accumulator, codes, x, factors, quarter, is_signed):
    """accumulator + factor · Σ of four codes · x, lane by lane, for 64 of a block's 256 elements.

    Args: codes 0 … 63; x int8; factors 16 bytes, one for every 16 elements; quarter 0 … 3 and is_signed (whether the
          factors are), constants.
    """
    if None in (literal(quarter), literal(is_signed)):
        return None

    def codegen(context, builder, signature, values):
        *operands, factors = values[:4]
        of_word = [4 * literal(quarter) + lane // 4 for lane in range(16)]
        if host.level().name not in ("avx512", "avx2"):
            picked = shuffle(builder, factors, factors, of_word)
            words = (builder.sext if literal(is_signed) else builder.zext)(picked, accumulator.llvm)
            return by_register(builder, [*operands, words], _add_words)
        of_pair = [each for each in of_word for _ in range(2)]
        if literal(is_signed):
            pairs = shuffle(builder, *[builder.sext(factors, ir.VectorType(I16, 16))] * 2, of_pair)
        else:
            bytes_of_pair = [byte for each in of_pair for byte in (each, 16)]
            pairs = shuffle(builder, factors, constant(factors.type, 0), bytes_of_pair)
            pairs = builder.bitcast(pairs, ir.VectorType(I16, 32))
        return by_register(builder, [*operands, pairs], _add_pairs)

    return accumulator(accumulator, codes, x, factors, quarter, is_signed), codegen


def by_register(builder, values, emit):
    """Apply `emit` to the values' parts, register by register."""
    width = register_bytes() // 4  # lanes of the result
    count = values[0].type.count // width
    parts = [split_lanes(builder, value, value.type.count // count) for value in values]
    return join_lanes(builder, [emit(builder, *part) for part in zip(*parts, strict=True)])


def _add_pairs(builder, accumulator, codes, x, factors):
    """Through sums of pairs in int16, which codes up to 63 fit."""
    bits, pairs = accumulator.type.count * 32, ir.VectorType(I16, accumulator.type.count * 2)
    multiply, sum_up = {
        256: ("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd"),
        512: ("llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512"),
    }[bits]
    products = call(builder, sum_up, accumulator.type, call(builder, multiply, pairs, codes, x), factors)
    return builder.add(accumulator, products)


def _add_words(builder, accumulator, codes, x, factors):
    if host.level().has("dotprod"):
        zero = constant(accumulator.type, 0)
        sums = call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", accumulator.type, zero, codes, x)
    else:
        sums = plain_dot(builder, codes, x)
    return builder.add(accumulator, builder.mul(sums, factors))


@intrinsic
def sign_start(typingctx, negative_sums):
    """What sums of `add_dot_signed` begin with: lanes whose sum over a block is minus the sum of the block's x."""

    def codegen(context, builder, signature, values):
        (sums,) = values
        if has_unsigned_by_signed():
            return builder.mul(sums, constant(sums.type, SIGN_OFFSET))
        return constant(sums.type, 0)

    return negative_sums(negative_sums), codegen


@intrinsic
def add_dot_signed(typingctx, accumulator, weights, x):
    """accumulator + Σ of four weights · x, lane by lane, for weights -128 … 127 and x -127 … 127.

    A machine that multiplies unsigned by signed bytes adds SIGN_OFFSET to the weights; `sign_start` makes up for it.
    """

    def codegen(context, builder, signature, values):
        return by_register(builder, values, add_signed)

    return accumulator(accumulator, weights, x), codegen


def add_signed(builder, accumulator, weights, x):
    """A register's sums and the products of signed weights with x."""
    level = host.level()
    if has_unsigned_by_signed():
        return emit_dpbusd(builder, accumulator, builder.xor(weights, constant(weights.type, SIGN_OFFSET)), x)
    if level.name in ("avx512", "avx2"):
        # |w| · (sign of w · x): a pair of products is at most 2 · 128 · 127, so it does not saturate int16.
        zero = constant(weights.type, 0)
        negative = builder.icmp_signed("<", weights, zero)
        magnitude = builder.select(negative, builder.sub(zero, weights), weights)
        signed = builder.select(negative, builder.sub(zero, x), x)
        return builder.add(accumulator, multiply_pairs(builder, magnitude, signed))
    if level.has("dotprod"):
        return call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", accumulator.type, accumulator, weights, x)
    return builder.add(accumulator, plain_dot(builder, weights, x))
