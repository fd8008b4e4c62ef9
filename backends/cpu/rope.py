"""Kernels of rope: cosines and sines once for each token, then all its heads. Keys may go right into a cache's cells.

Angles are taken in float64 and brought to [-π/4, π/4] before they become float32, so that they are exact at any
position. Rows are handled in chunks of PAIRS pairs, for which there is room on the stack.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from graphrt import ops
from graphrt.backends.cpu import host
from graphrt.backends.cpu.args import TENSOR_WORDS, address, float_scalar, row_address, scalar, share, size, stride
from graphrt.backends.cpu.elements import (
    FLOAT32,
    PIECE,
    element_bytes,
    gather,
    kinds,
    load_float,
    load_float_first,
    load_number,
    stack_floats,
    store_float,
    store_float_first,
    store_number,
)
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.jit import native
from graphrt.backends.cpu.memory import load_f32, load_integer, load_one, load_vector, store_double, store_f32
from graphrt.backends.cpu.registry import Call, lowering
from graphrt.backends.cpu.simd import (
    F32,
    F64,
    I32,
    I64,
    Vector,
    bits_as_f32,
    bits_as_i32,
    broadcast,
    constant,
    fma,
    literal,
    select,
    shuffle,
)
from graphrt.backends.cpu.transfer import load_signed
from graphrt.backends.cpu.vector_math import polynomial
from graphrt.ops.rope import Rotation
from graphrt.tensor import Tensor

PAIRS = PIECE // 2
CELLS = 4  # the tensor after those of a rope
ID_BYTES, BEFORE, MAGNITUDE = 4, 5, 6  # scalars
TWO_OVER_PI, HALF_PI = 2.0 / np.pi, np.pi / 2.0
SHIFTER = 6755399441055744.0  # 1.5 · 2⁵²: adding it rounds a float64 to a whole number
ONE, TWO, SIGN = np.int32(1), np.int32(2), np.int32(30)

_sine_tail = polynomial([-0.16666655, 0.00833217, -0.00019517])  # (sin(√z) / √z - 1) / z
_cosine = polynomial([1.0, -0.5, 0.0416666456, -0.00138873098, 2.44324111e-05])  # cos(√z)


@helper
def cosine_and_sine(r, quadrant):
    """Cosine and sine of r + quadrant · π/2, r in [-π/4, π/4]; quadrant int32."""
    square = r * r
    sine, cosine = fma(_sine_tail(square) * square, r, r), _cosine(square)
    odd = (quadrant & ONE) == ONE
    c, s = select(odd, sine, cosine), select(odd, cosine, sine)
    c = bits_as_f32(bits_as_i32(c) ^ (((quadrant + ONE) & TWO) << SIGN))
    s = bits_as_f32(bits_as_i32(s) ^ ((quadrant & TWO) << SIGN))
    return c, s


@intrinsic(prefer_literal=True)
def reduced_angles(typingctx, position, speeds, lanes):
    """Angles position · speeds[i] as (r, quadrant), r + quadrant · π/2 each, r in [-π/4, π/4]; `lanes` of them."""
    if literal(lanes) is None:
        return None
    count = literal(lanes)
    pair = types.Tuple([Vector("f32", count), Vector("i32", count)])

    def codegen(context, builder, signature, values):
        doubles = ir.VectorType(F64, count)
        factor = broadcast(builder, values[0], count)
        angle = builder.fmul(factor, load_vector(builder, values[1], F64, count))
        shifted = builder.fadd(builder.fmul(angle, constant(doubles, TWO_OVER_PI)), constant(doubles, SHIFTER))
        turns = builder.fsub(shifted, constant(doubles, SHIFTER))
        r = builder.fsub(angle, builder.fmul(turns, constant(doubles, HALF_PI)))
        whole = builder.trunc(builder.bitcast(shifted, ir.VectorType(I64, count)), ir.VectorType(I32, count))
        return context.make_tuple(builder, pair, [builder.fptrunc(r, ir.VectorType(F32, count)), whole])

    return pair(types.float64, types.int64, lanes), codegen


@helper
def load_speeds(target, scalars, factors, step, count):
    """Angles at position 1, float64: a call's scalars, divided by factors, `step` bytes apart, if there are any."""
    for i in range(count):
        speed = float_scalar(scalars, 0, i)
        if factors:
            speed /= np.float64(load_one(factors + i * step, "f32"))
        store_double(target + 8 * i, speed)


def table_of(lanes):
    """A helper: cosine and sine, times magnitude, of `count` pairs (and up to a whole vector) at one position."""

    @helper
    def table(position, speeds, count, magnitude, cosines, sines):
        for i in range(0, count, lanes):
            c, s = cosine_and_sine(*reduced_angles(np.float64(position), speeds + 8 * i, lanes))
            store_f32(cosines + 4 * i, "f32", c * magnitude)
            store_f32(sines + 4 * i, "f32", s * magnitude)

    return table


def _pick(name: str, lanes_of):
    """An intrinsic: the lanes of (u, v), laid end to end, that `lanes_of(count)` numbers."""

    def pick(typingctx, u, v):
        def codegen(context, builder, signature, values):
            return shuffle(builder, *values, lanes_of(u.lanes))

        return u(u, v), codegen

    pick.__name__ = name
    return intrinsic(pick)


evens = _pick("evens", lambda n: list(range(0, 2 * n, 2)))
odds = _pick("odds", lambda n: list(range(1, 2 * n, 2)))
lower_pairs = _pick("lower_pairs", lambda n: [i // 2 + n * (i % 2) for i in range(n)])
upper_pairs = _pick("upper_pairs", lambda n: [n // 2 + i // 2 + n * (i % 2) for i in range(n)])


def turn_neighbours(lanes):
    """A helper: rotate pairs (2i, 2i+1), which lie side by side from `x` on; y_upper and x_upper are not used."""

    @helper
    def turn(y, y_upper, out_kind, x, x_upper, x_kind, cosines, sines, count):
        out_step, step = element_bytes(out_kind), element_bytes(x_kind)
        for i in range(0, count, lanes):
            c, s = load_f32(cosines + 4 * i, "f32", lanes), load_f32(sines + 4 * i, "f32", lanes)
            source, target, left = x + 2 * i * step, y + 2 * i * out_step, 2 * (count - i)
            if left >= 2 * lanes:
                u, v = load_float(source, x_kind, lanes), load_float(source + lanes * step, x_kind, lanes)
            else:
                u = load_float_first(source, x_kind, lanes, left)
                v = load_float_first(source + lanes * step, x_kind, lanes, left - lanes)
            a, b = evens(u, v), odds(u, v)
            a, b = a * c - b * s, a * s + b * c
            u, v = lower_pairs(a, b), upper_pairs(a, b)
            if left >= 2 * lanes:
                store_float(target, out_kind, u)
                store_float(target + lanes * out_step, out_kind, v)
            else:
                store_float_first(target, out_kind, u, left)
                store_float_first(target + lanes * out_step, out_kind, v, left - lanes)

    return turn


def turn_halves(lanes):
    """A helper: rotate pairs (i, i + dims/2), the first elements from `x` on and the second from `x_upper` on."""

    @helper
    def turn(y, y_upper, out_kind, x, x_upper, x_kind, cosines, sines, count):
        out_step, step = element_bytes(out_kind), element_bytes(x_kind)
        for i in range(0, count, lanes):
            c, s = load_f32(cosines + 4 * i, "f32", lanes), load_f32(sines + 4 * i, "f32", lanes)
            if i + lanes <= count:
                a, b = load_float(x + i * step, x_kind, lanes), load_float(x_upper + i * step, x_kind, lanes)
                store_float(y + i * out_step, out_kind, a * c - b * s)
                store_float(y_upper + i * out_step, out_kind, a * s + b * c)
            else:
                a = load_float_first(x + i * step, x_kind, lanes, count - i)
                b = load_float_first(x_upper + i * step, x_kind, lanes, count - i)
                store_float_first(y + i * out_step, out_kind, a * c - b * s, count - i)
                store_float_first(y_upper + i * out_step, out_kind, a * s + b * c, count - i)

    return turn


@helper
def copy_elements(args, target, row, start, end, out_kind, x_kind):
    """Elements of a row that are not rotated; nothing is to do where the output is the input."""
    source, step = row_address(args, 1, row), element_bytes(out_kind)
    if target == source:
        return
    for i in range(start, end):
        store_number(target + i * step, out_kind, load_number(source + i * stride(args, 1, 3), x_kind))


def _target_of(cells: bool):
    """A helper: where a row of out goes; 0 where there is no such cell."""

    @helper
    def own(args, row, tensors):
        return row_address(args, 0, row)

    @helper
    def in_cell(args, row, tensors):
        heads, token = size(args, 1, 2), row // size(args, 1, 2)
        cell = load_signed(address(args, CELLS) + token * stride(args, CELLS, 3), scalar(args, tensors, ID_BYTES))
        if cell < 0 or cell >= size(args, 0, 2):
            return 0
        within = scalar(args, tensors, BEFORE) + row % heads * size(args, 1, 3) * stride(args, 0, 3)
        return address(args, 0) + cell * stride(args, 0, 2) + within

    return in_cell if cells else own


def rope(lanes, mode, cells):
    """Tensors: out, x, positions, factors; with `cells` out is a cache's table, and their numbers follow.

    Scalars: the dtypes' numbers of out and x; first; dims; bytes of a cell's number and of its row before the first
    column; magnitude; then the angle of each pair at position 1.
    """
    neighbours, tensors = mode == "normal", CELLS + cells
    table, turn = table_of(lanes), (turn_neighbours if neighbours else turn_halves)(lanes)
    target_of, speeds_at = _target_of(cells), 8 * (tensors * TENSOR_WORDS + MAGNITUDE + 1)

    def run(args, ith, nth):
        out_kind, x_kind = scalar(args, tensors, 0), scalar(args, tensors, 1)
        start, dims = scalar(args, tensors, 2), scalar(args, tensors, 3)
        x_step = stride(args, 1, 3)
        cosines, sines, speeds, buffer = (
            stack_floats(PAIRS),
            stack_floats(PAIRS),
            stack_floats(PIECE),
            stack_floats(PIECE),
        )
        magnitude = np.float32(float_scalar(args, tensors, MAGNITUDE))
        tokens, heads = size(args, 1, 1), size(args, 1, 2)
        first, last = share(size(args, 1, 0) * tokens * heads, ith, nth)
        for first_pair in range(0, dims // 2, PAIRS):
            count = min(PAIRS, dims // 2 - first_pair)
            at = start + (2 * first_pair if neighbours else first_pair)
            factors = address(args, 3)
            if factors:
                factors += first_pair * stride(args, 3, 3)
            load_speeds(speeds, args + speeds_at + 8 * first_pair, factors, stride(args, 3, 3), count)
            token = -1
            for row in range(first, last):
                if row // heads != token:
                    token = row // heads
                    position = load_integer(address(args, 2) + token % tokens * stride(args, 2, 3), "i32")
                    table(position, speeds, count, magnitude, cosines, sines)
                y, x = target_of(args, row, tensors), row_address(args, 1, row) + at * x_step
                if y == 0:
                    continue
                y += at * element_bytes(out_kind)
                x_upper, kind = x + dims // 2 * x_step, x_kind
                if x_step != element_bytes(x_kind):
                    gather(buffer, x, x_kind, x_step, 2 * count if neighbours else count)
                    if not neighbours:
                        gather(buffer + 4 * PAIRS, x_upper, x_kind, x_step, count)
                    x, x_upper, kind = buffer, buffer + 4 * PAIRS, FLOAT32
                turn(y, y + dims // 2 * element_bytes(out_kind), out_kind, x, x_upper, kind, cosines, sines, count)
        for row in range(first, last):
            y = target_of(args, row, tensors)
            if y != 0:
                copy_elements(args, y, row, 0, start, out_kind, x_kind)
                copy_elements(args, y, row, start + dims, size(args, 1, 3), out_kind, x_kind)

    return run


def calls(node: Tensor, store: Tensor | None = None) -> list[Call]:
    """The call of a rope; with a set_rows, of the two, from which the rotated rows go right into a cache's cells."""
    rotation, row = Rotation(**node.params), node.shape[-1]
    tensors, id_bytes, before = [store or node, *node.srcs], 0, 0
    if store is not None:
        cells = store.srcs[2]
        assert cells is not None
        tensors.append(cells)
        id_bytes, before = cells.dtype.nbytes, (store.params["first"] or 0) * store.dtype.nbytes
    scalars = [*kinds(tensors[:2]), rotation.first, rotation.width(row), id_bytes, before, float(rotation.magnitude)]
    scalars += map(float, rotation.speeds(row))
    turned = node.size // max(1, row) * rotation.width(row)
    function = native(rope, host.level().lanes, rotation.mode, store is not None)
    return [Call(function, tensors, scalars, work=node.size + 3 * turned)]


lowering(ops.rope)(calls)
