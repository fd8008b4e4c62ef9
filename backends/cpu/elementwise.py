"""Kernels of add, sub, mul, div, scale, clamp, fill: one native function for each op, for every mix of float dtypes.

Rows are cut into pieces, which the threads share. Tensors whose elements correspond in one dense run count as one row.
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
    load_float,
    load_float_first,
    piece_of,
    stack_floats,
    store_float,
    store_float_first,
)
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.registry import Call, KernelRecord, floats, kernel, native
from graphrt.backends.cpu.simd import fma, select
from graphrt.backends.cpu.vector_math import like
from graphrt.op import Op
from graphrt.tensor import Tensor


@helper
def pieces_of_output(args, flat):
    """How the output is cut: elements in a row, pieces in a row, pieces in all; a flat output is one row."""
    n, count = size(args, 0, 3), rows(args, 0)
    if flat:
        n, count = n * count, 1
    in_row = (n + PIECE - 1) // PIECE
    return n, in_row, in_row * count


def map_one(lanes, function):
    """Native: out = function(x, p, q) of each element; p and q are scalars of the call."""

    def run(args, ith, nth):
        out_kind, x_kind, flat = scalar(args, 2, 0), scalar(args, 2, 1), scalar(args, 2, 2)
        p, q = np.float32(float_scalar(args, 2, 3)), np.float32(float_scalar(args, 2, 4))
        out_step = element_bytes(out_kind)
        buffer = stack_floats(PIECE)
        n, in_row, pieces = pieces_of_output(args, flat)
        first, last = share(pieces, ith, nth)
        for piece in range(first, last):
            row = piece // in_row
            start = (piece - row * in_row) * PIECE
            count = min(PIECE, n - start)
            target = row_address(args, 0, row) + start * out_step
            x, kind = piece_of(args, 1, x_kind, row, start, count, buffer)
            x_step = element_bytes(kind)
            whole = count - count % lanes
            for i in range(0, whole, lanes):
                store_float(target + i * out_step, out_kind, function(load_float(x + i * x_step, kind, lanes), p, q))
            if whole < count:
                v = load_float_first(x + whole * x_step, kind, lanes, count - whole)
                store_float_first(target + whole * out_step, out_kind, function(v, p, q), count - whole)

    return run
