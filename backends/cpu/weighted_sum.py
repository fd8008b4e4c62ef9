"""Kernel of weighted_sum: each token's expert results, times their weights, added in rank order."""

from __future__ import annotations

import numpy as np

from graphrt import ops
from graphrt.backends.cpu import host
from graphrt.backends.cpu.args import address, row_address, scalar, share, size, stride
from graphrt.backends.cpu.elements import (
    FLOAT32,
    PIECE,
    element_bytes,
    gather,
    kinds,
    load_number,
    loop_one,
    loop_two,
    present,
    stack_floats,
)
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.jit import native
from graphrt.backends.cpu.registry import Call, kernel
from graphrt.backends.cpu.simd import fma
from graphrt.backends.cpu.vector_math import like
from graphrt.tensor import Tensor

ZERO = np.float32(0)


@helper
def number(x, value, unused):
    return like(x, value)


@helper
def same(x, unused, unused_too):
    return x


@helper
def plus_times(total, x, weight):
    return fma(x, like(x, weight), total)


@kernel(ops.weighted_sum)
def weighted_sum(lanes):
    """Scalars: the dtypes' numbers of out, x and weights; the bytes between tokens and between ranks in weights."""
    fill, add, store = loop_one(lanes, number), loop_two(lanes, plus_times), loop_one(lanes, same)

    def run(args, ith, nth):
        out_kind, x_kind, weight_kind = scalar(args, 3, 0), scalar(args, 3, 1), scalar(args, 3, 2)
        token_step, rank_step = scalar(args, 3, 3), scalar(args, 3, 4)
        total, buffer = stack_floats(PIECE), stack_floats(PIECE)
        n, used, x_step = size(args, 0, 3), size(args, 1, 2), stride(args, 1, 3)
        in_row = (n + PIECE - 1) // PIECE
        first, last = share(size(args, 0, 2) * in_row, ith, nth)
        for piece in range(first, last):
            token = piece // in_row
            start = (piece - token * in_row) * PIECE
            count = min(PIECE, n - start)
            fill(total, FLOAT32, total, FLOAT32, count, ZERO, ZERO)
            for rank in range(used):
                weight = load_number(address(args, 2) + token * token_step + rank * rank_step, weight_kind)
                x = address(args, 1) + token * stride(args, 1, 1) + rank * stride(args, 1, 2) + start * x_step
                kind = x_kind
                if x_step != element_bytes(x_kind):
                    gather(buffer, x, x_kind, x_step, count)
                    x, kind = buffer, FLOAT32
                add(total, FLOAT32, total, FLOAT32, x, kind, count, weight)
            target = row_address(args, 0, token) + start * element_bytes(out_kind)
            store(target, out_kind, total, FLOAT32, count, ZERO, ZERO)

    return run


@weighted_sum.lowering
def _(node: Tensor) -> list[Call]:
    x, weights = present(node)
    scalars = [*kinds([node, x, weights]), *weights.strides[:2]]
    return [Call(native(weighted_sum.factory, host.level().lanes), [node, x, weights], scalars)]
