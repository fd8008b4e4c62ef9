"""The inner loop of attention of few rows: dot products of a few rows with a few others, in registers."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from graphrt.backends.cpu.simd import F32, I64, _reduce, constant, literal
from graphrt.backends.cpu.tile import element_bytes, load_widened, loop, multiply_add


@intrinsic(prefer_literal=True)
def dot_tile(typingctx, a, a_pitch, b, b_pitch, depth, target, target_pitch, dtype, lanes, rows, columns):
    """target[r, c] = sum over k < depth of a[r, k] · b[c, k]; depth is a multiple of `lanes`.

    Args: a [rows, depth] float32, b [columns, depth] of a plain dtype, target [rows, columns] float32, rows their pitch
          in bytes apart. The last four are constants.
    """
    constants = [literal(item) for item in (dtype, lanes, rows, columns)]
    if None in constants:
        return None
    signature = types.void(*[types.int64] * 7, dtype, lanes, rows, columns)

    def codegen(context, builder, signature, values):
        _emit_dots(builder, values[:7], *constants)
        return context.get_dummy_value()

    return signature, codegen


def _emit_dots(builder, places, dtype, lanes, rows, columns):
    a, a_pitch, b, b_pitch, depth, target, target_pitch = places
    a_rows = [builder.add(a, builder.mul(a_pitch, I64(r))) for r in range(rows)]
    b_rows = [builder.add(b, builder.mul(b_pitch, I64(c))) for c in range(columns)]

    def body(k, sums):
        left = [load_widened(builder, builder.add(row, builder.mul(k, I64(4))), "f32", lanes) for row in a_rows]
        shift = builder.mul(k, I64(element_bytes(dtype)))
        right = [load_widened(builder, builder.add(row, shift), dtype, lanes) for row in b_rows]
        pairs = [(x, y) for y in right for x in left]
        return [multiply_add(builder, x, y, total) for (x, y), total in zip(pairs, sums, strict=True)]

    starts = [constant(ir.VectorType(F32, lanes), 0.0)] * (rows * columns)
    sums = loop(builder, depth, lanes, starts, body)
    for c in range(columns):
        for r in range(rows):
            place = builder.add(builder.add(target, builder.mul(target_pitch, I64(r))), I64(4 * c))
            total = _reduce(builder, sums[c * rows + r], lambda x, y: builder.fadd(x, y))
            builder.store(total, builder.inttoptr(place, F32.as_pointer()), align=4)
