"""LLVM vectors as ordinary Numba values: types, arithmetic, lane work. Memory access is in memory.py.

A vector is made by `splat(x, lanes)` or a load, lives in a register, and takes part in `+ - * /` with vectors and
scalars and in `< <= > >= ==` (which give masks for `select`). `lanes` is always a Python int that the kernel's factory
closes over:

    def factory(lanes):
        def kernel(args, ith, nth):
            v = load_f32(source, "f16", lanes)
            store_f32(target, "f32", fma(v, v, splat(np.float32(1), lanes)))
        return kernel

Everything here is plain LLVM, so it runs on any machine; LLVM splits vectors wider than the registers.
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba import types
from numba.core.datamodel import PrimitiveModel
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import intrinsic, lower_builtin, register_model

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F32 = ir.FloatType()
F64 = ir.DoubleType()
F16 = ir.HalfType()
ELEMENTS = {"f32": F32, "f16": F16, "i1": I1, "i8": I8, "i16": I16, "i32": I32, "i64": I64}


class Vector(types.Type):
    """`lanes` elements of one kind: f32, f16, i8, i16, i32, i64, or i1 (a mask)."""

    def __init__(self, element: str, lanes: int) -> None:
        self.element, self.lanes = element, lanes
        super().__init__(name=f"Vector({element} x {lanes})")

    @property
    def llvm(self) -> ir.VectorType:
        return ir.VectorType(ELEMENTS[self.element], self.lanes)


@register_model(Vector)
class _VectorModel(PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, vector.llvm)


# ---- building blocks for code generation -----------------------------------------------------------------------------


def constant(vector: ir.VectorType, value) -> ir.Constant:
    """All lanes `value`, or lane by lane from a list."""
    return ir.Constant(vector, value if isinstance(value, list) else [value] * vector.count)


def shuffle(builder, left, right, lanes: list[int]):
    """The lanes of (left, right) laid end to end, picked by number."""
    return builder.shuffle_vector(left, right, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def broadcast(builder, value, lanes: int):
    """A vector with `value` in every lane."""
    vector = ir.VectorType(value.type, lanes)
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), value, I32(0))
    return shuffle(builder, single, ir.Constant(vector, ir.Undefined), [0] * lanes)


def mangled(vector: ir.Type) -> str:
    """LLVM's spelling of a type in the name of an overloaded intrinsic: v16f32."""
    if isinstance(vector, ir.VectorType):
        return f"v{vector.count}{mangled(vector.element)}"
    return {F32: "f32", F16: "f16"}.get(vector) or f"i{vector.width}"


def call(builder, name: str, result: ir.Type, *values):
    """Call an LLVM intrinsic or C function by name, declaring it where the module has not yet."""
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(result, [value.type for value in values]), name)
    return builder.call(function, values)


def literal(value: types.Type):
    """The Python value of a literal argument, or None where it is no literal (Numba then tries again with literals)."""
    return getattr(value, "literal_value", None)


# ---- arithmetic and comparison through Python's operators ------------------------------------------------------------

_FLOAT_OPS = {operator.add: "fadd", operator.sub: "fsub", operator.mul: "fmul", operator.truediv: "fdiv"}
_INTEGER_OPS = {
    operator.add: "add",
    operator.sub: "sub",
    operator.mul: "mul",
    operator.and_: "and_",
    operator.or_: "or_",
    operator.xor: "xor",
    operator.lshift: "shl",
    operator.rshift: "lshr",
}
_COMPARISONS = {
    operator.lt: "<",
    operator.le: "<=",
    operator.gt: ">",
    operator.ge: ">=",
    operator.eq: "==",
    operator.ne: "!=",
}
_SCALARS = {"f32": types.float32, "i8": types.int8, "i16": types.int16, "i32": types.int32, "i64": types.int64}


def _common_vector(left, right):
    """The vector type of `left op right`, where one side may be a number."""
    if isinstance(left, Vector) and (left == right or isinstance(right, types.Number)):
        return left
    if isinstance(right, Vector) and isinstance(left, types.Number):
        return right
    return None


def _operand(builder, value, kind, vector):
    return value if isinstance(kind, Vector) else broadcast(builder, value, vector.lanes)


def _define_operator(op):
    @infer_global(op)
    class VectorOperator(AbstractTemplate):
        def generic(self, operands, keywords):
            if len(operands) != 2:
                return None
            vector = _common_vector(*operands)
            if vector is None or (vector.element != "f32" and op is operator.truediv):
                return None
            if op not in _COMPARISONS and op not in (_FLOAT_OPS if vector.element == "f32" else _INTEGER_OPS):
                return None
            result = Vector("i1", vector.lanes) if op in _COMPARISONS else vector
            typed = [kind if isinstance(kind, Vector) else _SCALARS[vector.element] for kind in operands]
            return result(*typed)

    def lower(context, builder, signature, values):
        vector = _common_vector(*signature.args)
        left, right = (_operand(builder, v, k, vector) for v, k in zip(values, signature.args, strict=True))
        if op in _COMPARISONS:
            compare = builder.fcmp_ordered if vector.element == "f32" else builder.icmp_signed
            if vector.element == "f32" and op is operator.ne:
                compare = builder.fcmp_unordered
            return compare(_COMPARISONS[op], left, right)
        names = _FLOAT_OPS if vector.element == "f32" else _INTEGER_OPS
        return getattr(builder, names[op])(left, right)

    for kinds in ((Vector, Vector), (Vector, types.Number), (types.Number, Vector)):
        lower_builtin(op, *kinds)(lower)


for _op in {**_FLOAT_OPS, **_INTEGER_OPS, **_COMPARISONS}:
    _define_operator(_op)


# ---- making and combining vectors ------------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def splat(typingctx, value, lanes):
    """`value` (float32 or an integer type) in every lane."""
    if literal(lanes) is None:
        return None
    value = types.unliteral(value)
    kinds = {scalar: element for element, scalar in _SCALARS.items()}
    scalar = types.float32 if isinstance(value, types.Float) else value
    vector = Vector(kinds[scalar], literal(lanes))

    def codegen(context, builder, signature, values):
        return broadcast(builder, values[0], vector.lanes)

    return vector(scalar, lanes), codegen


@intrinsic
def fma(typingctx, a, b, c):
    """a · b + c, rounded once."""

    def codegen(context, builder, signature, values):
        return call(builder, f"llvm.fma.{mangled(a.llvm)}", a.llvm, *values)

    return a(a, a, a), codegen


def _unary(name: str, doc: str):
    def apply(typingctx, a):
        def codegen(context, builder, signature, values):
            return call(builder, f"llvm.{name}.{mangled(a.llvm)}", a.llvm, *values)

        return a(a), codegen

    apply.__name__, apply.__doc__ = name, doc
    return intrinsic(apply)


def _binary(name: str, doc: str):
    def apply(typingctx, a, b):
        def codegen(context, builder, signature, values):
            return call(builder, f"llvm.{name}.{mangled(a.llvm)}", a.llvm, *values)

        return a(a, a), codegen

    apply.__name__, apply.__doc__ = name, doc
    return intrinsic(apply)


sqrt = _unary("sqrt", "The square root of each lane.")
absolute = _unary("fabs", "The magnitude of each lane.")
floor = _unary("floor", "Each lane rounded down.")
rint = _unary("rint", "Each lane rounded to the nearest integer, ties to even.")
minimum = _binary("minnum", "The lesser of each pair; a number where the other is NaN.")
maximum = _binary("maxnum", "The greater of each pair; a number where the other is NaN.")


@intrinsic
def select(typingctx, mask, a, b):
    """`a` where the mask is set, `b` elsewhere."""

    def codegen(context, builder, signature, values):
        return builder.select(*values)

    return a(mask, a, a), codegen


@intrinsic
def reduce_add(typingctx, a):
    """The sum of all lanes, added pairwise."""
    scalar = _SCALARS[a.element]

    def codegen(context, builder, signature, values):
        element = a.llvm.element
        if a.element == "f32":
            return _reduce(builder, values[0], lambda x, y: builder.fadd(x, y))
        return call(builder, f"llvm.vector.reduce.add.{mangled(a.llvm)}", element, *values)

    return scalar(a), codegen


@intrinsic
def reduce_max(typingctx, a):
    """The greatest lane (float32)."""

    def codegen(context, builder, signature, values):
        def larger(x, y):
            return call(builder, f"llvm.maxnum.{mangled(x.type)}", x.type, x, y)

        return _reduce(builder, values[0], larger)

    return types.float32(a), codegen


def _reduce(builder, vector, combine):
    """Halve the vector with `combine` until one lane is left."""
    count = vector.type.count
    while count > 1:
        count //= 2
        low = shuffle(builder, vector, vector, list(range(count)))
        high = shuffle(builder, vector, vector, list(range(count, 2 * count)))
        vector = combine(low, high)
    return builder.extract_element(vector, I32(0))


@intrinsic
def to_i32(typingctx, a):
    """Float32 lanes as int32, rounded towards zero; a lane out of range gives some int32."""
    result = Vector("i32", a.lanes)

    def codegen(context, builder, signature, values):
        return call(builder, f"llvm.fptosi.sat.{mangled(result.llvm)}.{mangled(a.llvm)}", result.llvm, *values)

    return result(a), codegen


@intrinsic
def to_f32(typingctx, a):
    """Integer lanes as float32."""
    result = Vector("f32", a.lanes)

    def codegen(context, builder, signature, values):
        return builder.sitofp(values[0], result.llvm)

    return result(a), codegen


@intrinsic
def bits_as_f32(typingctx, a):
    """int32 lanes read as the bits of float32."""
    result = Vector("f32", a.lanes)
    return result(a), lambda context, builder, signature, values: builder.bitcast(values[0], result.llvm)


@intrinsic
def bits_as_i32(typingctx, a):
    """Float32 lanes read as int32 bits."""
    result = Vector("i32", a.lanes)
    return result(a), lambda context, builder, signature, values: builder.bitcast(values[0], result.llvm)


@intrinsic(prefer_literal=True)
def lane(typingctx, a, index):
    """One lane, by a constant number."""
    scalar = _SCALARS[a.element]

    def codegen(context, builder, signature, values):
        return builder.extract_element(values[0], I32(literal(index)))

    return scalar(a, index), codegen
