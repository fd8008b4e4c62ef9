"""Kernels of rms_norm: two passes over each row, the sum of squares and the scaling; and with an add before them."""

from __future__ import annotations

import numpy as np

from graphrt import ops
from graphrt.backends.cpu import host
from graphrt.backends.cpu.args import address, float_scalar, row_address, rows, scalar, share, size
from graphrt.backends.cpu.elements import (
    PIECE,
    element_bytes,
    kinds,
    load_float,
    load_float_first,
    loop_one,
    loop_two,
    piece_of,
    stack_floats,
)
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.jit import native
from graphrt.backends.cpu.registry import Call, lowering
from graphrt.backends.cpu.simd import fma, reduce_add, splat
from graphrt.tensor import Tensor


def squares_of(lanes):
    """A helper: the sum of the squares of `count` elements that lie side by side."""
    step_lanes = 4 * lanes  # four sums, so that additions need not wait for each other

    @helper
    def squares(x, kind, count):
        step = element_bytes(kind)
        zero = splat(np.float32(0), lanes)
        a, b, c, d = zero, zero, zero, zero
        i = 0
        while i + step_lanes <= count:
            u = load_float(x + i * step, kind, lanes)
            v = load_float(x + (i + lanes) * step, kind, lanes)
            a, b = fma(u, u, a), fma(v, v, b)
            u = load_float(x + (i + 2 * lanes) * step, kind, lanes)
            v = load_float(x + (i + 3 * lanes) * step, kind, lanes)
            c, d = fma(u, u, c), fma(v, v, d)
            i += step_lanes
        while i < count:
            u = load_float_first(x + i * step, kind, lanes, count - i)
            a = fma(u, u, a)
            i += lanes
        return reduce_add((a + b) + (c + d))

    return squares


@helper
def scaled(x, factor, unused):
    return x * factor


@helper
def scaled_by_weight(x, weight, factor):
    return x * factor * weight


@helper
def sum_of(a, b, unused):
    return a + b


def row_norm(lanes, tensors, weight_at):
    """A helper: normalise a row of tensor 1 into tensor 0; the weight is tensor `weight_at` of as many as `tensors`."""
    squares = squares_of(lanes)
    loop, loop_with_weight = loop_one(lanes, scaled), loop_two(lanes, scaled_by_weight)

    @helper
    def normalise(args, row, eps):
        out_kind, x_kind, weight_kind = (
            scalar(args, tensors, 0),
            scalar(args, tensors, 1),
            scalar(args, tensors, weight_at),
        )
        weighted = address(args, weight_at) != 0
        x_buffer, weight_buffer = stack_floats(PIECE), stack_floats(PIECE)
        n = size(args, 0, 3)
        total = 0.0
        for start in range(0, n, PIECE):
            count = min(PIECE, n - start)
            x, kind = piece_of(args, 1, x_kind, False, row, start, count, x_buffer)
            total += squares(x, kind, count)
        factor = np.float32(1.0 / np.sqrt(total / n + eps))
        for start in range(0, n, PIECE):
            count = min(PIECE, n - start)
            target = row_address(args, 0, row) + start * element_bytes(out_kind)
            x, kind = piece_of(args, 1, x_kind, False, row, start, count, x_buffer)
            if weighted:
                weight, weight_now = piece_of(args, weight_at, weight_kind, False, 0, start, count, weight_buffer)
                loop_with_weight(target, out_kind, x, kind, weight, weight_now, count, factor)
            else:
                loop(target, out_kind, x, kind, count, factor, factor)

    return normalise


def rms_norm(lanes):
    """Scalars: the dtypes' numbers of out, x and weight; eps."""
    normalise = row_norm(lanes, 3, 2)

    def run(args, ith, nth):
        eps = float_scalar(args, 3, 3)
        first, last = share(rows(args, 0), ith, nth)
        for row in range(first, last):
            normalise(args, row, eps)

    return run


@lowering(ops.rms_norm)
def _(node: Tensor) -> list[Call]:
    tensors = [node, *node.srcs]
    scalars = [*kinds(tensors), float(node.params["eps"])]
    return [Call(native(rms_norm, host.level().lanes), tensors, scalars, work=2 * node.size)]


def add_rms_norm(lanes):
    """Norm and sum of tensors 2 and 3; tensor 4 is the weight. Scalars: the dtypes' numbers of all five; eps."""
    normalise, add = row_norm(lanes, 5, 4), loop_two(lanes, sum_of)

    def run(args, ith, nth):
        sum_kind, a_kind, b_kind = scalar(args, 5, 1), scalar(args, 5, 2), scalar(args, 5, 3)
        eps = float_scalar(args, 5, 5)
        a_buffer, b_buffer = stack_floats(PIECE), stack_floats(PIECE)
        n = size(args, 0, 3)
        first, last = share(rows(args, 0), ith, nth)
        for row in range(first, last):
            for start in range(0, n, PIECE):
                count = min(PIECE, n - start)
                target = row_address(args, 1, row) + start * element_bytes(sum_kind)
                a, a_now = piece_of(args, 2, a_kind, False, row, start, count, a_buffer)
                b, b_now = piece_of(args, 3, b_kind, False, row, start, count, b_buffer)
                add(target, sum_kind, a, a_now, b, b_now, count, np.float32(0))
            normalise(args, row, eps)

    return run
