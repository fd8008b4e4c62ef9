"""The inner loops of attention: products of small float32 tiles, whose rows may lie any distance apart."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.memory import load_vector, storage, widen
from graphrt.backends.cpu.simd import F32, I64, _reduce, broadcast, call, constant, literal, mangled


def _loop(builder, depth, step: int, starts: list, body: Callable):
    """Emit `for k in range(0, depth, step)` around accumulators; `body(k, sums)` gives their next values.

    Returns: the accumulators after the loop.
    """
    entry, function = builder.block, builder.function
    head, inside, done = (function.append_basic_block(f"tile.{part}") for part in ("head", "body", "done"))
    builder.branch(head)
    builder.position_at_end(head)
    k = builder.phi(I64)
    k.add_incoming(I64(0), entry)
    sums = [builder.phi(start.type) for start in starts]
    for each, start in zip(sums, starts, strict=True):
        each.add_incoming(start, entry)
    builder.cbranch(builder.icmp_signed("<", k, depth), inside, done)
    builder.position_at_end(inside)
    for each, value in zip(sums, body(k, sums), strict=True):
        each.add_incoming(value, builder.block)
    k.add_incoming(builder.add(k, I64(step)), builder.block)
    builder.branch(head)
    builder.position_at_end(done)
    return sums


def _fma(builder, a, b, c):
    return call(builder, f"llvm.fma.{mangled(c.type)}", c.type, a, b, c)


def _load(builder, address, dtype: str, lanes: int):
    """A vector of elements of a plain dtype, as float32."""
    return widen(builder, load_vector(builder, address, storage(dtype), lanes), dtype)


def _element_bytes(dtype: str) -> int:
    return 4 if dtype == "f32" else 2


def _float_at(builder, address):
    return builder.load(builder.inttoptr(address, F32.as_pointer()), align=4)


@intrinsic(prefer_literal=True)
def multiply_tile(
    typingctx, panel, panel_pitch, x, x_step, x_pitch, depth, target, target_pitch, dtype, lanes, vectors, columns, onto
):
    """target[c, r] = sum over k < depth of panel[k, r] · x[k, c], or onto what stands there.

    Args: panel [depth, vectors · lanes] of a plain dtype, rows `panel_pitch` bytes apart; x[k, c] float32 at
          x + k · x_step + c · x_pitch; target [columns, vectors · lanes] float32, rows `target_pitch` bytes apart.
          The last five are constants.
    """
    constants = [literal(item) for item in (dtype, lanes, vectors, columns, onto)]
    if None in constants:
        return None
    signature = types.void(*[types.int64] * 8, dtype, lanes, vectors, columns, onto)

    def codegen(context, builder, signature, values):
        _emit_multiply(builder, values[:8], *constants)
        return context.get_dummy_value()

    return signature, codegen


def _emit_multiply(builder, places, dtype, lanes, vectors, columns, onto):
    panel, panel_pitch, x, x_step, x_pitch, depth, target, target_pitch = places
    vector = ir.VectorType(F32, lanes)
    shifts = [builder.mul(x_pitch, I64(c)) for c in range(columns)]
    cells = [
        builder.add(builder.add(target, builder.mul(target_pitch, I64(c))), I64(4 * lanes * v))
        for c in range(columns)
        for v in range(vectors)
    ]
    starts = [load_vector(builder, cell, F32, lanes) if onto else constant(vector, 0.0) for cell in cells]

    def body(k, sums):
        at = builder.add(panel, builder.mul(k, panel_pitch))
        steps = [I64(_element_bytes(dtype) * lanes * v) for v in range(vectors)]
        row = [_load(builder, builder.add(at, step), dtype, lanes) for step in steps]
        x_at = builder.add(x, builder.mul(k, x_step))
        result = []
        for c in range(columns):
            one = broadcast(builder, _float_at(builder, builder.add(x_at, shifts[c])), lanes)
            result += [_fma(builder, row[v], one, sums[c * vectors + v]) for v in range(vectors)]
        return result

    for cell, total in zip(cells, _loop(builder, depth, 1, starts, body), strict=True):
        builder.store(total, builder.inttoptr(cell, vector.as_pointer()), align=4)


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
        left = [_load(builder, builder.add(row, builder.mul(k, I64(4))), "f32", lanes) for row in a_rows]
        shift = builder.mul(k, I64(_element_bytes(dtype)))
        right = [_load(builder, builder.add(row, shift), dtype, lanes) for row in b_rows]
        pairs = [(x, y) for y in right for x in left]
        return [_fma(builder, x, y, total) for (x, y), total in zip(pairs, sums, strict=True)]

    starts = [constant(ir.VectorType(F32, lanes), 0.0)] * (rows * columns)
    sums = _loop(builder, depth, lanes, starts, body)
    for c in range(columns):
        for r in range(rows):
            place = builder.add(builder.add(target, builder.mul(target_pitch, I64(r))), I64(4 * c))
            total = _reduce(builder, sums[c * rows + r], lambda x, y: builder.fadd(x, y))
            builder.store(total, builder.inttoptr(place, F32.as_pointer()), align=4)


def multiply_up_to(lanes: int, vectors: int, columns: int, onto: bool):
    """A helper: multiply_tile for 1 … columns columns, by the least of a few compiled widths that holds them.

    Columns beyond `count` are read and written too; x and the target must have room for them.
    """
    most, half = 2 * columns // 3, columns // 3

    @helper
    def multiply(panel, panel_pitch, x, step, pitch, depth, y, y_pitch, count):
        if count > most:
            multiply_tile(panel, panel_pitch, x, step, pitch, depth, y, y_pitch, "f32", lanes, vectors, columns, onto)
        elif count > half:
            multiply_tile(panel, panel_pitch, x, step, pitch, depth, y, y_pitch, "f32", lanes, vectors, most, onto)
        elif count > 1:
            multiply_tile(panel, panel_pitch, x, step, pitch, depth, y, y_pitch, "f32", lanes, vectors, half, onto)
        else:
            multiply_tile(panel, panel_pitch, x, step, pitch, depth, y, y_pitch, "f32", lanes, vectors, 1, onto)

    return multiply
