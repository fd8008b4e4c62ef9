"""The inner loops of attention of few rows, in registers: queries by keys, and the mixing of values."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from graphrt import dtypes
from graphrt.backends.cpu.memory import emit_prefetch, load_vector, widen
from graphrt.backends.cpu.simd import F32, I16, I64, _reduce, broadcast, constant, literal, shuffle
from graphrt.backends.cpu.tile import element_bytes, load_widened, loop, multiply_add

BLOCK = 4  # lanes, 128 bits, within which processors shuffle best
DIRECT = ("f32", "f16", "bf16", "q8_0")  # dtypes of keys and values that are read as they lie


def load_elements(builder, row, k, dtype, lanes):
    """Elements k … k + lanes - 1 of a row, as float32; k is a multiple of `lanes`."""
    if dtype != "q8_0":
        return load_widened(builder, builder.add(row, builder.mul(k, I64(element_bytes(dtype)))), dtype, lanes)
    q8_0 = dtypes.get(dtype)
    block = builder.add(row, builder.mul(builder.udiv(k, I64(q8_0.block)), I64(q8_0.nbytes)))
    scale = builder.load(builder.inttoptr(block, I16.as_pointer()), align=1)
    factor = widen(builder, broadcast(builder, scale, lanes), "f16")
    inside = builder.add(builder.add(block, I64(2)), builder.urem(k, I64(q8_0.block)))
    return builder.fmul(load_widened(builder, inside, "i8", lanes), factor)


@intrinsic(prefer_literal=True)
def dot_tile(typingctx, a, a_pitch, b, b_pitch, depth, target, target_pitch, dtype, lanes, rows, columns):
    """target[r, c] = sum over k < depth of a[r, k] · b[c, k]; depth is a multiple of `lanes`.

    Args: a [rows, depth] float32, b [columns, depth] of a DIRECT dtype, target [rows, columns] float32, rows their
          pitch in bytes apart. The last four are constants.
    """
    constants = [literal(item) for item in (dtype, lanes, rows, columns)]
    if None in constants:
        return None
    signature = types.void(*[types.int64] * 7, dtype, lanes, rows, columns)

    def codegen(context, builder, signature, values):
        a, a_pitch, b, b_pitch, depth, target, target_pitch = values[:7]
        tile = _Tile(builder, (a, a_pitch), (b, b_pitch), *constants)
        tile.add_products(I64(0), depth)
        tile.store(target, target_pitch)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def dot_turned_tile(
    typingctx,
    a,
    a_pitch,
    b,
    b_pitch,
    depth,
    first,
    pairs,
    turns,
    turn_bytes,
    target,
    target_pitch,
    dtype,
    lanes,
    rows,
    columns,
    mode,
):
    """The same, where elements first … first + 2 · pairs of row c of b turn by turn c on their way.

    In the rows of a the first elements of all pairs stand together, then the second ones, whatever the mode.

    Args: first, pairs and what is left of depth: multiples of `lanes`;  turns: the address of those for row 0 of b,
          cosines and then sines, `turn_bytes` each.  The last five are constants.
    """
    constants = [literal(item) for item in (dtype, lanes, rows, columns)]
    if None in [*constants, literal(mode)]:
        return None
    signature = types.void(*[types.int64] * 11, dtype, lanes, rows, columns, mode)

    def codegen(context, builder, signature, values):
        a, a_pitch, b, b_pitch, depth, first, pairs, turns, turn_bytes, target, target_pitch = values[:11]
        tile = _Tile(builder, (a, a_pitch), (b, b_pitch), *constants)
        tile.add_products(I64(0), first)
        tile.add_turned(first, pairs, turns, turn_bytes, literal(mode) == "normal")
        tile.add_products(builder.add(first, builder.shl(pairs, I64(1))), depth)
        tile.store(target, target_pitch)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def mix_tile(
    typingctx, values, pitch, ahead, powers, powers_pitch, cells, totals, totals_pitch, dtype, lanes, vectors, rows
):
    """totals[r, i] += sum over c < cells of powers[r, c] · values[c, i], for i < vectors · lanes.

    Args: values [cells, vectors · lanes] of a DIRECT dtype, powers [rows, cells] and totals [rows, vectors · lanes]
          float32, rows their pitch in bytes apart; what lies `ahead` bytes from the values read is asked for.
          The last four are constants.
    """
    constants = [literal(item) for item in (dtype, lanes, vectors, rows)]
    if None in constants:
        return None
    signature = types.void(*[types.int64] * 8, dtype, lanes, vectors, rows)

    def codegen(context, builder, signature, values):
        _emit_mix(builder, values[:8], *constants)
        return context.get_dummy_value()

    return signature, codegen


def _emit_mix(builder, places, dtype, lanes, vectors, rows):
    values, pitch, ahead, powers, powers_pitch, cells, totals, totals_pitch = places
    vector, nbytes = ir.VectorType(F32, lanes), dtypes.get(dtype).row_bytes(lanes * vectors)
    power_rows = [builder.add(powers, builder.mul(powers_pitch, I64(r))) for r in range(rows)]
    total_rows = [builder.add(totals, builder.mul(totals_pitch, I64(r))) for r in range(rows)]
    targets = [builder.add(row, I64(4 * lanes * v)) for row in total_rows for v in range(vectors)]

    def body(c, sums):
        at = builder.add(values, builder.mul(c, pitch))
        for start in range(0, nbytes, 64):
            emit_prefetch(builder, builder.add(builder.add(at, ahead), I64(start)))
        row = [load_elements(builder, at, I64(lanes * v), dtype, lanes) for v in range(vectors)]
        result = []
        for r, power_row in enumerate(power_rows):
            place = builder.add(power_row, builder.shl(c, I64(2)))
            power = broadcast(builder, builder.load(builder.inttoptr(place, F32.as_pointer()), align=4), lanes)
            result += [multiply_add(builder, row[v], power, sums[r * vectors + v]) for v in range(vectors)]
        return result

    starts = [load_vector(builder, place, F32, lanes) for place in targets]
    for place, total in zip(targets, loop(builder, cells, 1, starts, body), strict=True):
        builder.store(total, builder.inttoptr(place, vector.as_pointer()), align=4)


class _Tile:
    """The code of a tile: the sums of every row of a with every row of b, a vector each until they are stored."""

    def __init__(self, builder, a, b, dtype, lanes, rows, columns):
        self.builder, self.dtype, self.lanes, self.rows, self.columns = builder, dtype, lanes, rows, columns
        self.a = [builder.add(a[0], builder.mul(a[1], I64(r))) for r in range(rows)]
        self.b = [builder.add(b[0], builder.mul(b[1], I64(c))) for c in range(columns)]
        self.sums = [constant(ir.VectorType(F32, lanes), 0.0)] * (rows * columns)

    def _load(self, rows, k, dtype):
        """Vectors of elements k … of every row."""
        return [load_elements(self.builder, row, k, dtype, self.lanes) for row in rows]

    def _add(self, left, right, sums):
        """The sums with the products of vectors of a's rows and of b's added, row by row of a."""
        pairs = [(x, y) for x in left for y in right]
        return [multiply_add(self.builder, x, y, total) for (x, y), total in zip(pairs, sums, strict=True)]

    def add_products(self, start, end):
        """Add the products of elements start … end."""

        def body(k, sums):
            at = self.builder.add(start, k)
            return self._add(self._load(self.a, at, "f32"), self._load(self.b, at, self.dtype), sums)

        self.sums = loop(self.builder, self.builder.sub(end, start), self.lanes, self.sums, body)

    def add_turned(self, first, pairs, turns, turn_bytes, neighbours):
        """Add the products of the elements that turn."""
        builder = self.builder
        count, half = I64(self.lanes), builder.udiv(turn_bytes, I64(2))
        evens, odds = ([i + start for i in range(0, 2 * self.lanes, 2)] for start in (0, 1))

        def body(k, sums):
            low, high = builder.add(first, k), builder.add(builder.add(first, pairs), k)
            left_low, left_high = self._load(self.a, low, "f32"), self._load(self.a, high, "f32")
            if neighbours:
                place = builder.add(first, builder.shl(k, I64(1)))
                u, v = self._load(self.b, place, self.dtype), self._load(self.b, builder.add(place, count), self.dtype)
                right = [(shuffle(builder, *uv, evens), shuffle(builder, *uv, odds)) for uv in zip(u, v, strict=True)]
            else:
                right = list(
                    zip(self._load(self.b, low, self.dtype), self._load(self.b, high, self.dtype), strict=True)
                )
            turned = [self._turn(*pair, turns, turn_bytes, half, k, c) for c, pair in enumerate(right)]
            sums = self._add(left_low, [x for x, _ in turned], sums)
            return self._add(left_high, [y for _, y in turned], sums)

        self.sums = loop(builder, pairs, self.lanes, self.sums, body)

    def _turn(self, x, y, turns, turn_bytes, half, k, c):
        """Pairs of b's row c, turned."""
        builder = self.builder
        cosines = builder.add(builder.add(turns, builder.mul(turn_bytes, I64(c))), builder.shl(k, I64(2)))
        cos = load_vector(builder, cosines, F32, self.lanes)
        sin = load_vector(builder, builder.add(cosines, half), F32, self.lanes)
        back = builder.fneg(builder.fmul(y, sin))
        return (
            multiply_add(builder, x, cos, back),
            multiply_add(builder, x, sin, builder.fmul(y, cos)),
        )

    def store(self, target, pitch):
        """Store the sums of the lanes of every sum: row by row of a, one float32 for each row of b."""
        builder = self.builder
        if self.columns % BLOCK:
            totals = [_reduce(builder, each, builder.fadd) for each in self.sums]
            steps = [(r, I64(4 * c)) for r in range(self.rows) for c in range(self.columns)]
        else:
            totals = _sum_lanes(builder, self.sums)
            steps = [(r, I64(4 * c)) for r in range(self.rows) for c in range(0, self.columns, BLOCK)]
        for total, (r, step) in zip(totals, steps, strict=True):
            place = builder.add(builder.add(target, builder.mul(pitch, I64(r))), step)
            builder.store(total, builder.inttoptr(place, total.type.as_pointer()), align=4)


def _sum_lanes(builder, vectors):
    """The sums of each vector's lanes, those of four vectors together: halves of two vectors are added at a time."""
    parts = vectors[0].type.count // BLOCK  # that each sum is still in, after two steps
    for _ in range(2):
        vectors = _add_neighbours(builder, vectors, 1, BLOCK)
    while parts > 1:
        vectors = _add_neighbours(builder, vectors, BLOCK, vectors[0].type.count)
        parts //= 2
    blocks = [(vector, start) for vector in vectors for start in range(0, vector.type.count, BLOCK)]
    return [shuffle(builder, vector, vector, list(range(start, start + BLOCK))) for vector, start in blocks]


def _add_neighbours(builder, vectors, unit, span):
    """Add neighbouring units of lanes; where there are two vectors, each span holds the sums of both, one by one."""
    lanes, both = vectors[0].type.count, len(vectors) > 1
    low = [
        vector + start + i + j
        for start in range(0, lanes, span)
        for vector in ((0, lanes) if both else (0,))
        for i in range(0, span, 2 * unit)
        for j in range(unit)
    ]
    high = [lane + unit for lane in low]
    pairs = zip(vectors[::2], vectors[1::2] if both else vectors, strict=True)
    return [builder.fadd(shuffle(builder, x, y, low), shuffle(builder, x, y, high)) for x, y in pairs]
