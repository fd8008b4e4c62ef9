"""Kernel of weighted_sum: each token's expert results, times their weights, added in rank order."""

from __future__ import annotations

import numpy as np

from graphrt import ops
from graphrt.backends.cpu import host
from graphrt.backends.cpu.args import address, row_address, scalar, share, size, stride
from graphrt.backends.cpu.elements import (
    PIECE,
    element_bytes,
    kinds,
    load_float,
    load_float_first,
    load_number,
    present,
    store_float,
    store_float_first,
    store_number,
)
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.jit import native
from graphrt.backends.cpu.registry import Call, lowering
from graphrt.backends.cpu.simd import fma, splat
from graphrt.tensor import Tensor

ZERO = np.float32(0)


@helper
def weight_of(args, token, rank):
    """One weight; scalars 3 and 4 are the bytes between tokens and between ranks."""
    return load_number(address(args, 2) + token * scalar(args, 3, 3) + rank * scalar(args, 3, 4), scalar(args, 3, 2))


@helper
def add_one_by_one(args, token, target, x, count):
    """The sums of `count` elements that do not lie side by side in x."""
    for i in range(count):
        total = ZERO
        for rank in range(size(args, 1, 2)):
            at = x + rank * stride(args, 1, 2) + i * stride(args, 1, 3)
            total += weight_of(args, token, rank) * load_number(at, scalar(args, 3, 1))
        store_number(target + i * element_bytes(scalar(args, 3, 0)), scalar(args, 3, 0), total)


def weighted_sum(lanes):
    """Scalars: the dtypes' numbers of out, x and weights; the bytes between tokens and between ranks in weights."""

    @helper
    def add_rows(args, token, target, x, count):
        out_kind, kind, used, pitch = scalar(args, 3, 0), scalar(args, 3, 1), size(args, 1, 2), stride(args, 1, 2)
        step, out_step = element_bytes(kind), element_bytes(out_kind)
        whole = count - count % lanes
        for i in range(0, whole, lanes):
            total = splat(ZERO, lanes)
            for rank in range(used):
                v = load_float(x + rank * pitch + i * step, kind, lanes)
                total = fma(v, splat(weight_of(args, token, rank), lanes), total)
            store_float(target + i * out_step, out_kind, total)
        if whole < count:
            total = splat(ZERO, lanes)
            for rank in range(used):
                v = load_float_first(x + rank * pitch + whole * step, kind, lanes, count - whole)
                total = fma(v, splat(weight_of(args, token, rank), lanes), total)
            store_float_first(target + whole * out_step, out_kind, total, count - whole)

    def run(args, ith, nth):
        n, x_step = size(args, 0, 3), stride(args, 1, 3)
        in_row = (n + PIECE - 1) // PIECE
        first, last = share(size(args, 0, 2) * in_row, ith, nth)
        for piece in range(first, last):
            token = piece // in_row
            start = (piece - token * in_row) * PIECE
            count = min(PIECE, n - start)
            target = row_address(args, 0, token) + start * element_bytes(scalar(args, 3, 0))
            x = address(args, 1) + token * stride(args, 1, 1) + start * x_step
            if x_step == element_bytes(scalar(args, 3, 1)):
                add_rows(args, token, target, x, count)
            else:
                add_one_by_one(args, token, target, x, count)

    return run


@lowering(ops.weighted_sum)
def _(node: Tensor) -> list[Call]:
    x, weights = present(node)
    scalars = [*kinds([node, x, weights]), *weights.strides[:2]]
    return [Call(native(weighted_sum, host.level().lanes), [node, x, weights], scalars, work=x.size)]
