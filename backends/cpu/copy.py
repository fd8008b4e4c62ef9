"""Kernels of cont, dup, cast, cpy, concat and repeat, each one native function for all dtypes (see transfer.py)."""

from __future__ import annotations

from graphrt import ops
from graphrt.backend import YES, Support
from graphrt.backends.cpu.args import address, broadcast_row_address, row_address, rows, scalar, share, size, stride
from graphrt.backends.cpu.elements import PIECE, present
from graphrt.backends.cpu.jit import native
from graphrt.backends.cpu.registry import Call, lowering
from graphrt.backends.cpu.transfer import SOURCE_BLOCK, SOURCE_BYTES, TARGET_BLOCK, TARGET_BYTES, put, route
from graphrt.tensor import Tensor

ROUTE = 1  # the first scalar of every call here is of its own; the route follows


def copy_elements():
    """Native: the source's elements, in order, over the output's; in runs that stay within a row of either.

    Its own scalar: whether both tensors are dense, and so count as one row.
    """

    def run(args, ith, nth):
        way = args + 8 * (2 * 9 + ROUTE)
        n, m = size(args, 0, 3), size(args, 1, 3)
        total = rows(args, 0) * n
        target_step, source_step = stride(args, 0, 3), stride(args, 1, 3)
        if scalar(args, 2, 0):
            n, m = total, total
            target_step, source_step = scalar(args, 2, ROUTE + TARGET_BYTES), scalar(args, 2, ROUTE + SOURCE_BYTES)
        target_block, source_block = scalar(args, 2, ROUTE + TARGET_BLOCK), scalar(args, 2, ROUTE + SOURCE_BLOCK)
        first, last = share((total + PIECE - 1) // PIECE, ith, nth)
        start, end = first * PIECE, min(last * PIECE, total)
        while start < end:
            target_row, source_row = start // n, start // m
            target_at, source_at = start - target_row * n, start - source_row * m
            count = min(n - target_at, m - source_at, end - start)
            target = row_address(args, 0, target_row) + target_at // target_block * target_step
            source = row_address(args, 1, source_row) + source_at // source_block * source_step
            put(way, target, target_step, source, source_step, count)
            start += count

    return run


def copy_call(node: Tensor, source: Tensor) -> list[Call]:
    """The call that brings the source's elements to the node's memory."""
    scalars = [node.is_dense and source.is_dense, *route(source.dtype, node.dtype)]
    return [Call(native(copy_elements), [node, source], scalars, work=node.size)]


def copy_of_source(node: Tensor) -> list[Call]:
    return copy_call(node, present(node)[0])


for _op in (ops.cont, ops.dup, ops.cast):
    lowering(_op)(copy_of_source)


def _rows_of_blocks_match(node: Tensor) -> Support:
    x = present(node)[1]
    plain = not (node.dtype.is_quantized or x.dtype.is_quantized)
    if plain or (node.is_dense and x.is_dense) or node.shape[-1] == x.shape[-1]:
        return YES
    return Support(
        False,
        f"cpy of {x.dtype} {list(x.shape)} over {node.dtype} {list(node.shape)} cuts blocks",
        "give both the same last axis, or wrap x in ops.cont",
    )


@lowering(ops.cpy, takes=_rows_of_blocks_match)
def _(node: Tensor) -> list[Call]:
    return copy_call(node, present(node)[1])


def concat():
    """Row by row, first a's and then b's. Its own scalar: where b begins, in bytes from the output's start."""

    def run(args, ith, nth):
        way = args + 8 * (3 * 9 + ROUTE)
        rows_of_a = rows(args, 1)
        first, last = share(rows_of_a + rows(args, 2), ith, nth)
        for i in range(first, last):
            source, row, start = 1, i, 0
            if i >= rows_of_a:
                source, row, start = 2, i - rows_of_a, scalar(args, 3, 0)
            target = broadcast_row_address(args, 0, row, source) + start
            step = stride(args, source, 3)
            put(way, target, stride(args, 0, 3), row_address(args, source, row), step, size(args, source, 3))

    return run


@lowering(ops.concat)
def _(node: Tensor) -> list[Call]:
    a, b = present(node)
    axis = node.params["axis"] % node.rank
    scalars = [a.blocks_shape[axis] * node.strides[axis], *route(node.dtype, node.dtype)]
    return [Call(native(concat), [node, a, b], scalars, work=node.size)]


def repeat():
    """Output row by output row: the source's row, as often as it fits. Its own scalar: bytes of a source row, dense."""

    def run(args, ith, nth):
        way, row_bytes = args + 8 * (2 * 9 + ROUTE), scalar(args, 2, 0)
        n = size(args, 1, 3)
        times = size(args, 0, 3) // max(n, 1)
        first, last = share(rows(args, 0), ith, nth)
        for row in range(first, last):
            i2 = row % size(args, 0, 2) % size(args, 1, 2)
            outer = row // size(args, 0, 2)
            i1 = outer % size(args, 0, 1) % size(args, 1, 1)
            i0 = outer // size(args, 0, 1) % size(args, 1, 0)
            source = address(args, 1) + i0 * stride(args, 1, 0) + i1 * stride(args, 1, 1) + i2 * stride(args, 1, 2)
            target = row_address(args, 0, row)
            for i in range(times):
                put(way, target + i * row_bytes, stride(args, 0, 3), source, stride(args, 1, 3), n)

    return run


@lowering(ops.repeat)
def _(node: Tensor) -> list[Call]:
    (x,) = present(node)
    scalars = [x.dtype.row_bytes(x.shape[-1]) if x.rank else x.dtype.nbytes, *route(node.dtype, node.dtype)]
    return [Call(native(repeat), [node, x], scalars, work=node.size)]
