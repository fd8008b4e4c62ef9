"""Loads and stores between memory and vectors, with conversion of the plain dtypes from and to float32.

`dtype` is a graphrt name ("f32", "f16", "bf16", "i8", "i16", "i32", "i64") and, like `lanes`, a constant of the
kernel's factory. Addresses need no alignment. The `_first` forms touch only the first `count` lanes (the tail of a
row): other lanes load as 0.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from graphrt.backends.cpu import host
from graphrt.backends.cpu.simd import F16, F32, I8, I16, I32, I64, Vector, broadcast, call, constant, literal, mangled

_STORAGE = {"f32": F32, "f16": I16, "bf16": I16, "i8": I8, "i16": I16, "i32": I32, "i64": I64}


def storage(dtype: str) -> ir.Type:
    """The LLVM type of one element in memory; f16 and bf16 travel as their 16 bits."""
    return _STORAGE[dtype]


def _like(shape: ir.Type, element: ir.Type) -> ir.Type:
    """`element` as a scalar or vector of the same count as `shape`."""
    return ir.VectorType(element, shape.count) if isinstance(shape, ir.VectorType) else element


def _fill(shape: ir.Type, value) -> ir.Constant:
    return constant(shape, value) if isinstance(shape, ir.VectorType) else ir.Constant(shape, value)


def _half_in_hardware() -> bool:
    level = host.level()
    return level.has("f16c") or level.has("neon")


def widen(builder, raw, dtype: str):
    """Values of `dtype` as they stand in memory -> float32 (scalar or vector)."""
    floats, words = _like(raw.type, F32), _like(raw.type, I32)
    if dtype == "f32":
        return raw
    if dtype == "f16":
        if _half_in_hardware():
            return builder.fpext(builder.bitcast(raw, _like(raw.type, F16)), floats)
        return _half_to_float(builder, builder.zext(raw, words))
    if dtype == "bf16":
        return builder.bitcast(builder.shl(builder.zext(raw, words), _fill(words, 16)), floats)
    return builder.sitofp(raw, floats)


def narrow(builder, value, dtype: str):
    """Float32 (scalar or vector) -> values of `dtype` as they stand in memory, rounded to nearest even."""
    target = _like(value.type, storage(dtype))
    if dtype == "f32":
        return value
    if dtype == "f16":
        if _half_in_hardware():
            return builder.bitcast(builder.fptrunc(value, _like(value.type, F16)), target)
        return builder.trunc(_float_to_half(builder, value), target)
    if dtype == "bf16":
        return builder.trunc(_float_to_brain(builder, value), target)
    return call(builder, f"llvm.fptosi.sat.{mangled(target)}.{mangled(value.type)}", target, value)


def _half_to_float(builder, half):
    """binary16 bits in int32 -> float32: shift the exponent into place and rescale; infinities and NaN by select."""
    words, floats = half.type, _like(half.type, F32)
    magnitude = builder.shl(builder.and_(half, _fill(words, 0x7FFF)), _fill(words, 13))
    scaled = builder.fmul(builder.bitcast(magnitude, floats), _fill(floats, 2.0**112))
    special = builder.icmp_unsigned(">=", magnitude, _fill(words, 0x7C00 << 13))
    finite = builder.bitcast(scaled, words)
    bits = builder.select(special, builder.or_(magnitude, _fill(words, 0x7F800000)), finite)
    sign = builder.shl(builder.and_(half, _fill(words, 0x8000)), _fill(words, 16))
    return builder.bitcast(builder.or_(bits, sign), floats)


def _float_to_half(builder, value):
    """float32 -> binary16 bits in int32. Subnormals round by adding 0.5, whose last bit weighs a half's least."""
    floats, words = value.type, _like(value.type, I32)
    bits = builder.bitcast(value, words)
    sign = builder.and_(bits, _fill(words, 0x80000000))
    magnitude = builder.xor(bits, sign)
    odd = builder.and_(builder.lshr(magnitude, _fill(words, 13)), _fill(words, 1))
    rebased = builder.add(builder.add(magnitude, _fill(words, 0xC8000FFF)), odd)
    normal = builder.lshr(rebased, _fill(words, 13))
    shifted = builder.fadd(builder.bitcast(magnitude, floats), _fill(floats, 0.5))
    subnormal = builder.sub(builder.bitcast(shifted, words), _fill(words, 0x3F000000))
    is_nan = builder.icmp_unsigned(">", magnitude, _fill(words, 0x7F800000))
    special = builder.select(is_nan, _fill(words, 0x7E00), _fill(words, 0x7C00))
    small = builder.select(builder.icmp_unsigned("<", magnitude, _fill(words, 0x38800000)), subnormal, normal)
    half = builder.select(builder.icmp_unsigned(">=", magnitude, _fill(words, 0x47800000)), special, small)
    return builder.or_(half, builder.lshr(sign, _fill(words, 16)))


def _float_to_brain(builder, value):
    """float32 -> bfloat16 bits in int32; NaN stays NaN."""
    words = _like(value.type, I32)
    bits = builder.bitcast(value, words)
    odd = builder.and_(builder.lshr(bits, _fill(words, 16)), _fill(words, 1))
    rounded = builder.lshr(builder.add(builder.add(bits, _fill(words, 0x7FFF)), odd), _fill(words, 16))
    quiet = builder.or_(builder.lshr(bits, _fill(words, 16)), _fill(words, 0x40))
    return builder.select(builder.fcmp_unordered("uno", value, value), quiet, rounded)


def first_lanes(builder, count, lanes: int):
    """The mask of lanes 0 … count-1."""
    numbers = ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))
    return builder.icmp_signed("<", numbers, broadcast(builder, builder.trunc(count, I32), lanes))


def load_vector(builder, address, element: ir.Type, lanes: int):
    vector = ir.VectorType(element, lanes)
    return builder.load(builder.inttoptr(address, vector.as_pointer()), align=1)


def load_masked(builder, address, element: ir.Type, lanes: int, mask):
    vector = ir.VectorType(element, lanes)
    pointer = builder.inttoptr(address, vector.as_pointer())
    return call(builder, f"llvm.masked.load.{mangled(vector)}.p0", vector, pointer, I32(1), mask, constant(vector, 0))


def emit_prefetch(builder, address, level: int = 2):
    """Ask for the cache line at an address, which need not be valid, to come to the first- or second-level cache."""
    pointer = builder.inttoptr(address, I8.as_pointer())
    call(builder, "llvm.prefetch.p0", ir.VoidType(), pointer, I32(0), I32(4 - level), I32(1))


# ---- what kernels use ------------------------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def load_f32(typingctx, address, dtype, lanes):
    """`lanes` consecutive elements of `dtype` as float32."""
    if literal(dtype) is None or literal(lanes) is None:
        return None

    def codegen(context, builder, signature, values):
        raw = load_vector(builder, values[0], storage(literal(dtype)), literal(lanes))
        return widen(builder, raw, literal(dtype))

    return Vector("f32", literal(lanes))(types.int64, dtype, lanes), codegen


@intrinsic(prefer_literal=True)
def load_f32_first(typingctx, address, dtype, lanes, count):
    """The first `count` of `lanes` consecutive elements of `dtype` as float32, then zeros."""
    if literal(dtype) is None or literal(lanes) is None:
        return None

    def codegen(context, builder, signature, values):
        mask = first_lanes(builder, values[3], literal(lanes))
        raw = load_masked(builder, values[0], storage(literal(dtype)), literal(lanes), mask)
        return widen(builder, raw, literal(dtype))

    return Vector("f32", literal(lanes))(types.int64, dtype, lanes, types.int64), codegen


@intrinsic(prefer_literal=True)
def store_f32(typingctx, address, dtype, vector):
    """Store float32 lanes as consecutive elements of `dtype`."""
    if literal(dtype) is None:
        return None

    def codegen(context, builder, signature, values):
        raw = narrow(builder, values[2], literal(dtype))
        builder.store(raw, builder.inttoptr(values[0], raw.type.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, dtype, vector), codegen


@intrinsic(prefer_literal=True)
def store_f32_first(typingctx, address, dtype, vector, count):
    """Store the first `count` float32 lanes as consecutive elements of `dtype`."""
    if literal(dtype) is None:
        return None

    def codegen(context, builder, signature, values):
        raw = narrow(builder, values[2], literal(dtype))
        mask = first_lanes(builder, values[3], vector.lanes)
        pointer = builder.inttoptr(values[0], raw.type.as_pointer())
        call(builder, f"llvm.masked.store.{mangled(raw.type)}.p0", ir.VoidType(), raw, pointer, I32(1), mask)
        return context.get_dummy_value()

    return types.void(types.int64, dtype, vector, types.int64), codegen


@intrinsic(prefer_literal=True)
def load_one(typingctx, address, dtype):
    """One element of `dtype` as float32."""
    if literal(dtype) is None:
        return None

    def codegen(context, builder, signature, values):
        element = storage(literal(dtype))
        return widen(builder, builder.load(builder.inttoptr(values[0], element.as_pointer()), align=1), literal(dtype))

    return types.float32(types.int64, dtype), codegen


@intrinsic(prefer_literal=True)
def store_one(typingctx, address, dtype, value):
    """Store one float32 as `dtype`."""
    if literal(dtype) is None:
        return None

    def codegen(context, builder, signature, values):
        raw = narrow(builder, values[2], literal(dtype))
        builder.store(raw, builder.inttoptr(values[0], raw.type.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, dtype, types.float32), codegen


@intrinsic(prefer_literal=True)
def load_integer(typingctx, address, kind):
    """One integer of `kind` (u8, i8, u16, i16, u32, i32, i64) as int64."""
    if literal(kind) is None:
        return None
    bits = int(literal(kind)[1:])

    def codegen(context, builder, signature, values):
        raw = builder.load(builder.inttoptr(values[0], ir.IntType(bits).as_pointer()), align=1)
        if bits == 64:
            return raw
        return (builder.zext if literal(kind)[0] == "u" else builder.sext)(raw, I64)

    return types.int64(types.int64, kind), codegen


@intrinsic(prefer_literal=True)
def store_integer(typingctx, address, kind, value):
    """Store the low bits of an int64 as one integer of `kind` (i8, i16, i32, i64)."""
    if literal(kind) is None:
        return None

    def codegen(context, builder, signature, values):
        integer = ir.IntType(int(literal(kind)[1:]))
        raw = values[2] if integer == I64 else builder.trunc(values[2], integer)
        builder.store(raw, builder.inttoptr(values[0], integer.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, kind, types.int64), codegen


@intrinsic
def store_double(typingctx, address, value):
    """Store one float64."""

    def codegen(context, builder, signature, values):
        builder.store(values[1], builder.inttoptr(values[0], values[1].type.as_pointer()), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.float64), codegen
