"""Kernel of rms_norm: two passes over each row, the sum of squares and the scaling."""

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


def rms_norm(lanes):
    """Scalars: the dtypes' numbers of out, x and weight; eps."""
    squares = squares_of(lanes)
    loop, loop_with_weight = loop_one(lanes, scaled), loop_two(lanes, scaled_by_weight)

    def run(args, ith, nth):
        out_kind, x_kind, weight_kind = scalar(args, 3, 0), scalar(args, 3, 1), scalar(args, 3, 2)
        eps, weighted = float_scalar(args, 3, 3), address(args, 2) != 0
        x_buffer, weight_buffer = stack_floats(PIECE), stack_floats(PIECE)
        n = size(args, 0, 3)
        first, last = share(rows(args, 0), ith, nth)
        for row in range(first, last):
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
                    weight, weight_now = piece_of(args, 2, weight_kind, False, 0, start, count, weight_buffer)
                    loop_with_weight(target, out_kind, x, kind, weight, weight_now, count, factor)
                else:
                    loop(target, out_kind, x, kind, count, factor, factor)

    return run


@lowering(ops.rms_norm)
def _(node: Tensor) -> list[Call]:
    tensors = [node, *node.srcs]
    scalars = [*kinds(tensors), float(node.params["eps"])]
    return [Call(native(rms_norm, host.level().lanes), tensors, scalars)]
