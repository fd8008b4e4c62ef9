"""Kernels of add, sub, mul, div, scale, clamp, fill: one native function for each op, for every mix of float dtypes.

Rows are cut into pieces, which the threads share. Tensors whose elements correspond in one dense run count as one row.
`map_one` and `map_two` serve unary.py and glu.py too.
"""

from __future__ import annotations

import numpy as np

from graphrt import ops
from graphrt.backends.cpu import host
from graphrt.backends.cpu.args import address, float_scalar, row_address, rows, scalar, share, size
from graphrt.backends.cpu.elements import (
    PIECE,
    element_bytes,
    is_flat,
    kinds,
    loop_one,
    loop_two,
    piece_of,
    stack_floats,
)
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.jit import Native, native
from graphrt.backends.cpu.memory import store_integer
from graphrt.backends.cpu.registry import Call, lowering
from graphrt.backends.cpu.simd import fma, select
from graphrt.backends.cpu.vector_math import like
from graphrt.tensor import Tensor


@helper
def cut(args, flat):
    """How the output is cut: elements in a row, pieces in a row, pieces in all; a flat output is one row."""
    n, count = size(args, 0, 3), rows(args, 0)
    if flat:
        n, count = n * count, 1
    in_row = (n + PIECE - 1) // PIECE
    return n, in_row, in_row * count


def map_one(lanes, function):
    """The body of kernels out = function(x, p, q), element by element, with the call's scalars p and q."""
    loop = loop_one(lanes, function)

    def run(args, ith, nth):
        out_kind, x_kind, flat = scalar(args, 2, 0), scalar(args, 2, 1), scalar(args, 2, 2)
        p, q = np.float32(float_scalar(args, 2, 3)), np.float32(float_scalar(args, 2, 4))
        buffer = stack_floats(PIECE)
        n, in_row, pieces = cut(args, flat)
        first, last = share(pieces, ith, nth)
        for piece in range(first, last):
            row = piece // in_row
            start = (piece - row * in_row) * PIECE
            count = min(PIECE, n - start)
            target = row_address(args, 0, row) + start * element_bytes(out_kind)
            x, kind = piece_of(args, 1, x_kind, flat, row, start, count, buffer)
            loop(target, out_kind, x, kind, count, p, q)

    return run


def map_two(lanes, function):
    """The body of kernels out = function(a, b), element by element; without b, a's rows hold a's half, then b's."""

    @helper
    def without_number(a, b, p):
        return function(a, b)

    loop = loop_two(lanes, without_number)

    def run(args, ith, nth):
        out_kind, a_kind, b_kind, flat = scalar(args, 3, 0), scalar(args, 3, 1), scalar(args, 3, 2), scalar(args, 3, 3)
        a_buffer, b_buffer = stack_floats(PIECE), stack_floats(PIECE)
        n, in_row, pieces = cut(args, flat)
        first, last = share(pieces, ith, nth)
        for piece in range(first, last):
            row = piece // in_row
            start = (piece - row * in_row) * PIECE
            count = min(PIECE, n - start)
            target = row_address(args, 0, row) + start * element_bytes(out_kind)
            a, a_now = piece_of(args, 1, a_kind, flat, row, start, count, a_buffer)
            if address(args, 2):
                b, b_now = piece_of(args, 2, b_kind, flat, row, start, count, b_buffer)
            else:
                b, b_now = piece_of(args, 1, a_kind, False, row, start + n, count, b_buffer)
            loop(target, out_kind, a, a_now, b, b_now, count, np.float32(0))

    return run


def call_of(function: Native, node: Tensor, scalars: tuple[float, ...] = (), each: int = 1) -> Call:
    """The call of a map kernel for a node: dtypes' numbers, whether it is flat, and the scalars; `each` is work."""
    tensors = [node, *node.srcs]
    flat = is_flat(node, *node.srcs)
    return Call(function, tensors, [*kinds(tensors), flat, *map(float, scalars)], work=each * node.size)


# ---- two tensors -----------------------------------------------------------------------------------------------------


@helper
def add_vectors(a, b):
    return a + b


@helper
def subtract_vectors(a, b):
    return a - b


@helper
def multiply_vectors(a, b):
    return a * b


@helper
def divide_vectors(a, b):
    return a / b


_TWO = {"add": add_vectors, "sub": subtract_vectors, "mul": multiply_vectors, "div": divide_vectors}


def arithmetic(lanes, name):
    """add, sub, mul or div."""
    return map_two(lanes, _TWO[name])


def arithmetic_calls(node: Tensor) -> list[Call]:
    assert node.op is not None
    return [call_of(native(arithmetic, host.level().lanes, node.op.name), node)]


for _op in (ops.add, ops.sub, ops.mul, ops.div):
    lowering(_op)(arithmetic_calls)


# ---- a tensor and numbers --------------------------------------------------------------------------------------------


@helper
def scale_vector(x, factor, bias):
    return fma(x, like(x, factor), like(x, bias))


@helper
def clamp_vector(x, low, high):
    # Selects and no minimum and maximum: these would drop NaN.
    x = select(x < low, like(x, low), x)
    return select(x > high, like(x, high), x)


def scale(lanes):
    """x · factor + bias."""
    return map_one(lanes, scale_vector)


@lowering(ops.scale)
def _(node: Tensor) -> list[Call]:
    numbers = node.params["factor"], node.params["bias"]
    return [call_of(native(scale, host.level().lanes), node, numbers)]


def clamp(lanes):
    """Each element between two numbers."""
    return map_one(lanes, clamp_vector)


@lowering(ops.clamp)
def _(node: Tensor) -> list[Call]:
    numbers = node.params["min"], node.params["max"]
    return [call_of(native(clamp, host.level().lanes), node, numbers)]


def fill():
    """The output's bytes: the value's bits over and over in an int64, any dtype."""

    def run(args, ith, nth):
        nbytes, pattern = scalar(args, 1, 0), scalar(args, 1, 1)
        words = nbytes // 8
        first, last = share(words, ith, nth)
        target = address(args, 0)
        for i in range(first, last):
            store_integer(target + 8 * i, "i64", pattern)
        if ith == nth - 1:
            for i in range(8 * words, nbytes):
                store_integer(target + i, "i8", pattern >> (8 * (i % 8)))

    return run


@lowering(ops.fill)
def _(node: Tensor) -> list[Call]:
    item = np.full(8 // node.dtype.nbytes, node.params["value"]).astype(node.dtype.numpy)
    return [Call(native(fill), [node], [node.nbytes, int(item.view(np.int64)[0])], work=node.size)]
