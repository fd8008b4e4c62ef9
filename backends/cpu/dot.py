"""Vectors of small integers: unpacking quantized weights, and int8 dot products in the best form the machine has.

Code that uses these works on 64 bytes at a time, whatever the machine's registers hold; they are split here.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from graphrt.backends.cpu import host
from graphrt.backends.cpu.memory import load_vector
from graphrt.backends.cpu.simd import (
    I1,
    I8,
    I16,
    I32,
    Vector,
    call,
    constant,
    literal,
    shuffle,
)


@intrinsic(prefer_literal=True)
def load_bytes(typingctx, address, lanes):
    """`lanes` consecutive bytes."""
    if literal(lanes) is None:
        return None

    def codegen(context, builder, signature, values):
        return load_vector(builder, values[0], I8, literal(lanes))

    return Vector("i8", literal(lanes))(types.int64, lanes), codegen


@intrinsic(prefer_literal=True)
def load_i32(typingctx, address, lanes):
    """`lanes` consecutive int32."""
    if literal(lanes) is None:
        return None

    def codegen(context, builder, signature, values):
        return load_vector(builder, values[0], I32, literal(lanes))

    return Vector("i32", literal(lanes))(types.int64, lanes), codegen


@intrinsic
def store_bytes(typingctx, address, vector):
    """Store a vector as it is."""

    def codegen(context, builder, signature, values):
        builder.store(values[1], builder.inttoptr(values[0], vector.llvm.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, vector), codegen


@intrinsic
def join(typingctx, low, high):
    """Two vectors laid end to end."""
    result = Vector(low.element, low.lanes * 2)

    def codegen(context, builder, signature, values):
        return shuffle(builder, values[0], values[1], list(range(result.lanes)))

    return result(low, low), codegen


@intrinsic(prefer_literal=True)
def pick(typingctx, vector, lanes):
    """The lanes of a vector in another order; `lanes` is a tuple of constants and may repeat or leave out some."""
    order = [item.literal_value for item in lanes.types] if hasattr(lanes, "types") else None
    if order is None:
        return None
    result = Vector(vector.element, len(order))

    def codegen(context, builder, signature, values):
        return shuffle(builder, values[0], ir.Constant(vector.llvm, ir.Undefined), order)

    return result(vector, lanes), codegen


@intrinsic
def unsigned_to_f32(typingctx, vector):
    """Unsigned lanes as float32."""
    result = Vector("f32", vector.lanes)
    return result(vector), lambda context, builder, signature, values: builder.uitofp(values[0], result.llvm)


@intrinsic
def signed_to_i32(typingctx, vector):
    """Signed lanes as int32."""
    result = Vector("i32", vector.lanes)
    return result(vector), lambda context, builder, signature, values: builder.sext(values[0], result.llvm)


@intrinsic
def low_bytes(typingctx, vector):
    """The low byte of each lane."""
    result = Vector("i8", vector.lanes)
    return result(vector), lambda context, builder, signature, values: builder.trunc(values[0], result.llvm)


@intrinsic
def bytes_of_word(typingctx, value):
    """The eight bytes of an int64, lowest first."""
    result = Vector("i8", 8)
    return result(types.int64), lambda context, builder, signature, values: builder.bitcast(values[0], result.llvm)


@intrinsic
def bits_to_bytes(typingctx, word):
    """The 16 low bits of an int64, lowest first, as bytes 0 or -1."""
    result = Vector("i8", 16)

    def codegen(context, builder, signature, values):
        bits = builder.bitcast(builder.trunc(values[0], I16), ir.VectorType(I1, 16))
        return builder.sext(bits, result.llvm)

    return result(types.int64), codegen


@intrinsic(prefer_literal=True)
def lookup(typingctx, indices, table):
    """For each lane, the entry of `table` (a tuple of 16 constants, int8) that its value 0 … 15 names."""
    entries = [item.literal_value for item in table.types] if hasattr(table, "types") else None
    if entries is None:
        return None

    def codegen(context, builder, signature, values):
        return emit_lookup(builder, values[0], entries)

    return indices(indices, table), codegen


def emit_lookup(builder, indices, entries: list[int]):
    """A vector of 16, 32 or 64 bytes 0 … 15 looked up in a table of 16 signed bytes."""
    parts = split_lanes(builder, indices, register_bytes())
    return join_lanes(builder, [_lookup_in_register(builder, part, entries) for part in parts])


def _lookup_in_register(builder, indices, entries: list[int]):
    """Look bytes up: by one byte shuffle where the machine has it, else by selects over the index's bits."""
    table = ir.Constant(indices.type, [entry & 0xFF for entry in entries] * (indices.type.count // 16))
    if host.level().has("ssse3"):
        name = {16: "ssse3.pshuf.b.128", 32: "avx2.pshuf.b", 64: "avx512.pshuf.b.512"}[indices.type.count]
        return call(builder, f"llvm.x86.{name}", indices.type, table, indices)
    if host.level().has("neon"):
        return call(builder, "llvm.aarch64.neon.tbl1.v16i8", indices.type, table, indices)
    candidates = [constant(indices.type, entry & 0xFF) for entry in entries]
    for bit in range(4):
        mask = builder.and_(indices, constant(indices.type, 1 << bit))
        is_set = builder.icmp_unsigned("!=", mask, constant(indices.type, 0))
        pairs = zip(candidates[::2], candidates[1::2], strict=True)
        candidates = [builder.select(is_set, odd, even) for even, odd in pairs]
    return candidates[0]


# ---- dot products ----------------------------------------------------------------------------------------------------

SIGN_OFFSET = 128  # makes signed bytes unsigned, for machines that multiply unsigned by signed ones


@intrinsic
def dot_unsigned(typingctx, accumulator, weights, x):
    """accumulator[i] + Σ weights[4i+j] · x[4i+j], j = 0 … 3, for weights in 0 … 127 and x in -127 … 127."""

    def codegen(context, builder, signature, values):
        return _in_parts(builder, values, _dot_unsigned)

    return accumulator(accumulator, weights, x), codegen


def register_bytes() -> int:
    """Bytes of a vector register of the present SIMD level."""
    level = host.level()
    return 64 if level.name == "avx512" else 32 if level.name == "avx2" else 16


def split_lanes(builder, vector, lanes: int):
    """A vector in parts of `lanes` lanes."""
    count = vector.type.count
    if count <= lanes:
        return [vector]
    return [shuffle(builder, vector, vector, list(range(at, at + lanes))) for at in range(0, count, lanes)]


def join_lanes(builder, parts):
    """Equal vectors, a power of two of them, laid end to end."""
    while len(parts) > 1:
        count = 2 * parts[0].type.count
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [shuffle(builder, low, high, list(range(count))) for low, high in pairs]
    return parts[0]


def _in_parts(builder, values, dot):
    """Apply `dot` register by register."""
    width = register_bytes()
    accumulators = split_lanes(builder, values[0], width // 4)
    weights, x = split_lanes(builder, values[1], width), split_lanes(builder, values[2], width)
    return join_lanes(builder, [dot(builder, *part) for part in zip(accumulators, weights, x, strict=True)])


def has_unsigned_by_signed() -> bool:
    """Whether the machine has vpdpbusd for its level's registers."""
    level = host.level()
    return level.has("avx512vnni") if level.name == "avx512" else level.has("avxvnni")


def emit_dpbusd(builder, accumulator, weights, x):
    words = accumulator.type
    name = f"llvm.x86.avx512.vpdpbusd.{words.count * 32}"
    return call(builder, name, words, accumulator, builder.bitcast(weights, words), builder.bitcast(x, words))


def _dot_unsigned(builder, accumulator, weights, x):
    level = host.level()
    if has_unsigned_by_signed():
        return emit_dpbusd(builder, accumulator, weights, x)
    if level.name in ("avx512", "avx2"):
        return builder.add(accumulator, multiply_pairs(builder, weights, x))
    if level.has("dotprod"):
        return call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", accumulator.type, accumulator, weights, x)
    return builder.add(accumulator, plain_dot(builder, weights, x))


def multiply_pairs(builder, unsigned, signed):
    """Sums of four products through pmaddubsw and pmaddwd."""
    count = unsigned.type.count
    halves, words = ir.VectorType(I16, count // 2), ir.VectorType(I32, count // 4)
    first, second = {
        16: ("llvm.x86.ssse3.pmadd.ub.sw.128", "llvm.x86.sse2.pmadd.wd"),
        32: ("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd"),
        64: ("llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512"),
    }[count]
    pairs = call(builder, first, halves, unsigned, signed)
    return call(builder, second, words, pairs, constant(halves, 1))


def plain_dot(builder, weights, x):
    """Sums of four products in plain LLVM."""
    count = weights.type.count
    wide = ir.VectorType(I32, count)
    products = builder.mul(builder.sext(weights, wide), builder.sext(x, wide))
    total = None
    for j in range(4):
        part = shuffle(builder, products, products, list(range(j, count, 4)))
        total = part if total is None else builder.add(total, part)
    return total
