"""Kernels of get_rows, set_rows and add_id.

Ids are data, so they are checked here: a row number that does not exist reads as NaN (0 for integers), is not written,
and adds NaN; no memory outside the tensors is touched.
"""

from __future__ import annotations

import numpy as np

from graphrt import ops
from graphrt.backends.cpu import host
from graphrt.backends.cpu.args import address, row_address, rows, scalar, share, size, stride
from graphrt.backends.cpu.elements import (
    PIECE,
    element_bytes,
    gather,
    kinds,
    loop_one,
    loop_two,
    piece_of,
    present,
    stack_floats,
    store_number,
)
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.jit import native
from graphrt.backends.cpu.registry import Call, lowering
from graphrt.backends.cpu.transfer import load_signed, put, route, store_signed
from graphrt.tensor import Tensor

NAN = np.float32(np.nan)


@helper
def outer_index(i, count):
    """Index along an axis that is repeated where its length is 1."""
    return i if count > 1 else 0


def get_rows():
    """Scalars: bytes of an id, bytes of an output element, whether it is an integer, then the route from x's dtype."""

    def run(args, ith, nth):
        way, id_bytes, out_bytes, whole = (
            args + 8 * (3 * 9 + 3),
            scalar(args, 3, 0),
            scalar(args, 3, 1),
            scalar(args, 3, 2),
        )
        n, count = size(args, 0, 3), size(args, 0, 2)
        first, last = share(rows(args, 0), ith, nth)
        for row in range(first, last):
            i0, i1, k = row // count // size(args, 0, 1), row // count % size(args, 0, 1), row % count
            at = address(args, 2) + i0 * stride(args, 2, 1) + i1 * stride(args, 2, 2) + k * stride(args, 2, 3)
            chosen = load_signed(at, id_bytes)
            target = row_address(args, 0, row)
            if 0 <= chosen < size(args, 1, 2):
                x = address(args, 1) + i0 * stride(args, 1, 0) + i1 * stride(args, 1, 1) + chosen * stride(args, 1, 2)
                put(way, target, out_bytes, x, stride(args, 1, 3), n)
            else:
                for i in range(n):
                    if whole:
                        store_signed(target + i * out_bytes, out_bytes, 0)
                    else:
                        store_number(target + i * out_bytes, 0, NAN)

    return run


@lowering(ops.get_rows)
def _(node: Tensor) -> list[Call]:
    x, ids = present(node)
    scalars = [ids.dtype.nbytes, node.dtype.nbytes, node.dtype.is_integer, *route(x.dtype, node.dtype)]
    return [Call(native(get_rows), [node, x, ids], scalars, work=2 * node.size)]


def set_rows():
    """Scalars: bytes of an id, bytes of a row before the first column, then the route to the target's dtype."""

    def run(args, ith, nth):
        way, id_bytes, before = args + 8 * (3 * 9 + 2), scalar(args, 3, 0), scalar(args, 3, 1)
        n, count = size(args, 1, 3), size(args, 1, 2)
        middle = size(args, 0, 1)
        first, last = share(size(args, 0, 0) * middle * count, ith, nth)
        for row in range(first, last):
            i0, i1, k = row // count // middle, row // count % middle, row % count
            at = address(args, 2) + k * stride(args, 2, 3)
            at += outer_index(i0, size(args, 2, 1)) * stride(args, 2, 1)
            at += outer_index(i1, size(args, 2, 2)) * stride(args, 2, 2)
            chosen = load_signed(at, id_bytes)
            if 0 <= chosen < size(args, 0, 2):
                target = address(args, 0) + before + i0 * stride(args, 0, 0) + i1 * stride(args, 0, 1)
                source = address(args, 1) + k * stride(args, 1, 2)
                source += outer_index(i0, size(args, 1, 0)) * stride(args, 1, 0)
                source += outer_index(i1, size(args, 1, 1)) * stride(args, 1, 1)
                put(way, target + chosen * stride(args, 0, 2), stride(args, 0, 3), source, stride(args, 1, 3), n)

    return run


@lowering(ops.set_rows)
def _(node: Tensor) -> list[Call]:
    _, given, ids = present(node)
    before = (node.params["first"] or 0) // node.dtype.block * node.strides[-1]
    scalars = [ids.dtype.nbytes, before, *route(given.dtype, node.dtype)]
    return [Call(native(set_rows), [node, given, ids], scalars, work=2 * given.size)]


@helper
def sum_of(a, b, unused):
    return a + b


@helper
def plus_nan(x, unused, unused_too):
    return x + NAN


def add_id(lanes):
    """Scalars: the dtypes' numbers of out, x and bias, and the bytes of an id."""
    add_row, spoil = loop_two(lanes, sum_of), loop_one(lanes, plus_nan)

    def run(args, ith, nth):
        out_kind, x_kind, bias_kind, id_bytes = (
            scalar(args, 4, 0),
            scalar(args, 4, 1),
            scalar(args, 4, 2),
            scalar(args, 4, 3),
        )
        x_buffer, bias_buffer = stack_floats(PIECE), stack_floats(PIECE)
        n, used, step = size(args, 0, 3), size(args, 0, 2), stride(args, 2, 3)
        first, last = share(rows(args, 0), ith, nth)
        for row in range(first, last):
            at = address(args, 3) + row // used * stride(args, 3, 2) + row % used * stride(args, 3, 3)
            chosen = load_signed(at, id_bytes)
            for start in range(0, n, PIECE):
                count = min(PIECE, n - start)
                target = row_address(args, 0, row) + start * element_bytes(out_kind)
                x, kind = piece_of(args, 1, x_kind, False, row, start, count, x_buffer)
                if not 0 <= chosen < size(args, 2, 2):
                    spoil(target, out_kind, x, kind, count, NAN, NAN)
                    continue
                bias, bias_now = address(args, 2) + chosen * stride(args, 2, 2) + start * step, bias_kind
                if step != element_bytes(bias_kind):
                    gather(bias_buffer, bias, bias_kind, step, count)
                    bias, bias_now = bias_buffer, 0
                add_row(target, out_kind, x, kind, bias, bias_now, count, NAN)

    return run


@lowering(ops.add_id)
def _(node: Tensor) -> list[Call]:
    tensors = [node, *present(node)]
    scalars = [*kinds(tensors[:3]), tensors[3].dtype.nbytes]
    return [Call(native(add_id, host.level().lanes), tensors, scalars)]
