"""The inner loops of products with many columns: a register-tiled product of packed panels, and a transpose."""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from graphrt.backends.cpu import host
from graphrt.backends.cpu.memory import load_vector
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


@intrinsic(prefer_literal=True)
def multiply_tile(typingctx, panel, x, depth, target, lanes, vectors, columns, pitch):
    """target[c, r] = sum over k < depth of panel[k, r] · x[k, c].

    Args: panel [depth, vectors · lanes] f32;  x [depth, pitch] f32, of which `columns` columns are taken;
          target [columns, vectors · lanes] f32. The last four arguments are constants.
    """
    constants = [literal(item) for item in (lanes, vectors, columns, pitch)]
    if None in constants:
        return None
    signature = types.void(types.int64, types.int64, types.int64, types.int64, lanes, vectors, columns, pitch)

    def codegen(context, builder, signature, values):
        _emit_product(builder, *values[:4], *constants)
        return context.get_dummy_value()

    return signature, codegen


def _emit_product(builder, panel, x, depth, target, lanes, vectors, columns, pitch):
    vector = ir.VectorType(F32, lanes)
    entry, function = builder.block, builder.function
    head = function.append_basic_block("product.head")
    body = function.append_basic_block("product.body")
    done = function.append_basic_block("product.done")
    builder.branch(head)

    builder.position_at_end(head)
    k = builder.phi(I64)
    k.add_incoming(I64(0), entry)
    sums = [[builder.phi(vector) for _ in range(vectors)] for _ in range(columns)]
    for each in (item for row in sums for item in row):
        each.add_incoming(constant(vector, 0.0), entry)
    builder.cbranch(builder.icmp_signed("<", k, depth), body, done)

    builder.position_at_end(body)
    at = builder.add(panel, builder.mul(k, I64(4 * lanes * vectors)))
    weights = [load_vector(builder, builder.add(at, I64(4 * lanes * v)), F32, lanes) for v in range(vectors)]
    x_at = builder.add(x, builder.mul(k, I64(4 * pitch)))
    for c in range(columns):
        one = builder.load(builder.inttoptr(builder.add(x_at, I64(4 * c)), F32.as_pointer()), align=4)
        value = broadcast(builder, one, lanes)
        for v in range(vectors):
            added = call(builder, f"llvm.fma.{mangled(vector)}", vector, weights[v], value, sums[c][v])
            sums[c][v].add_incoming(added, body)
    k.add_incoming(builder.add(k, I64(1)), body)
    builder.branch(head)

    builder.position_at_end(done)
    for c in range(columns):
        for v in range(vectors):
            place = builder.add(target, I64(4 * lanes * (c * vectors + v)))
            builder.store(sums[c][v], builder.inttoptr(place, vector.as_pointer()), align=4)


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
