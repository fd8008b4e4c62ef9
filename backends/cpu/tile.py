"""The inner loops of products with many columns: a register-tiled product of packed panels, and a transpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from graphrt.backends.cpu import bf16, host
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.memory import load_vector, storage, widen
from graphrt.backends.cpu.simd import F32, I64, broadcast, call, constant, literal, mangled, shuffle


@dataclass(frozen=True)
class Tile:
    """The tile of y that stays in registers: `vectors` times `lanes` rows of w, by up to `columns` columns of x."""

    lanes: int
    vectors: int
    columns: int

    @property
    def rows(self) -> int:
        return self.lanes * self.vectors


_TILES = {"avx512": Tile(16, 2, 12), "avx2": Tile(8, 2, 6), "neon": Tile(4, 4, 6), "generic": Tile(8, 1, 4)}


def tile() -> Tile:
    """The tile that fits the registers of the present SIMD level."""
    return _TILES[host.level().name]


def loop(builder, depth, step: int, starts: list, body: Callable):
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


def multiply_add(builder, a, b, c):
    return call(builder, f"llvm.fma.{mangled(c.type)}", c.type, a, b, c)


def load_widened(builder, address, dtype: str, lanes: int):
    """A vector of elements of a plain dtype, as float32."""
    return widen(builder, load_vector(builder, address, storage(dtype), lanes), dtype)


def element_bytes(dtype: str) -> int:
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
          With dtype "pairs" both panel and x hold words of two bfloat16 instead (see bf16.py), and depth counts words.
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
    add, stored = (bf16.add_products, "f32") if dtype == "pairs" else (multiply_add, dtype)
    shifts = [builder.mul(x_pitch, I64(c)) for c in range(columns)]
    cells = [
        builder.add(builder.add(target, builder.mul(target_pitch, I64(c))), I64(4 * lanes * v))
        for c in range(columns)
        for v in range(vectors)
    ]
    starts = [load_vector(builder, cell, F32, lanes) if onto else constant(vector, 0.0) for cell in cells]

    def body(k, sums):
        at = builder.add(panel, builder.mul(k, panel_pitch))
        steps = [I64(element_bytes(stored) * lanes * v) for v in range(vectors)]
        row = [load_widened(builder, builder.add(at, step), stored, lanes) for step in steps]
        x_at = builder.add(x, builder.mul(k, x_step))
        result = []
        for c in range(columns):
            one = broadcast(builder, _float_at(builder, builder.add(x_at, shifts[c])), lanes)
            result += [add(builder, row[v], one, sums[c * vectors + v]) for v in range(vectors)]
        return result

    for cell, total in zip(cells, loop(builder, depth, 1, starts, body), strict=True):
        builder.store(total, builder.inttoptr(cell, vector.as_pointer()), align=4)


@cache
def multiply_up_to(lanes: int, vectors: int, columns: int, onto: bool, dtype: str = "f32"):
    """A helper: multiply_tile for 1 … columns columns, by the least of a few compiled widths that holds them.

    Columns beyond `count` are read and written too; x and the target must have room for them.
    """
    most, half = 2 * columns // 3, columns // 3

    @helper
    def multiply(panel, panel_pitch, x, step, pitch, depth, y, y_pitch, count):
        if count > most:
            multiply_tile(panel, panel_pitch, x, step, pitch, depth, y, y_pitch, dtype, lanes, vectors, columns, onto)
        elif count > half:
            multiply_tile(panel, panel_pitch, x, step, pitch, depth, y, y_pitch, dtype, lanes, vectors, most, onto)
        elif count > 1:
            multiply_tile(panel, panel_pitch, x, step, pitch, depth, y, y_pitch, dtype, lanes, vectors, half, onto)
        else:
            multiply_tile(panel, panel_pitch, x, step, pitch, depth, y, y_pitch, dtype, lanes, vectors, 1, onto)

    return multiply


@intrinsic(prefer_literal=True)
def transpose_block(typingctx, source, source_pitch, target, target_pitch, lanes):
    """target[c, r] = source[r, c] for `lanes` by `lanes` float32; pitches in bytes."""
    if literal(lanes) is None:
        return None

    def codegen(context, builder, signature, values):
        count = literal(lanes)
        vector = ir.VectorType(F32, count)
        rows = [
            load_vector(builder, builder.add(values[0], builder.mul(values[1], I64(i))), F32, count)
            for i in range(count)
        ]
        for i, column in enumerate(_transposed(builder, rows)):
            place = builder.add(values[2], builder.mul(values[3], I64(i)))
            builder.store(column, builder.inttoptr(place, vector.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64, lanes), codegen


def _transposed(builder, rows):
    """Swap ever larger squares off the diagonal: of single elements, of 2 x 2, and so on."""
    count = len(rows)
    side = 1
    while side < count:
        upper = [lane if lane & side == 0 else count + lane - side for lane in range(count)]
        lower = [lane + side if lane & side == 0 else count + lane for lane in range(count)]
        swapped = list(rows)
        for i in range(count):
            if i & side == 0:
                swapped[i] = shuffle(builder, rows[i], rows[i + side], upper)
                swapped[i + side] = shuffle(builder, rows[i], rows[i + side], lower)
        rows, side = swapped, 2 * side
    return rows
