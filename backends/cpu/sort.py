"""Kernels of argsort and top_k: a heap of the best k of each row, taken apart into order.

Elements become int64 keys: the float's bits as a number that grows with it, then the index, so that no two keys are
equal and of equal elements the lower index ranks first. argsort is the case k = N.
"""

from __future__ import annotations

import numpy as np

from graphrt import ops
from graphrt.backends.cpu.args import broadcast_row_address, row_address, rows, scalar, share, size, stride
from graphrt.backends.cpu.elements import load_number, present, store_number
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.jit import native
from graphrt.backends.cpu.memory import load_integer, store_integer
from graphrt.backends.cpu.registry import Call, lowering
from graphrt.tensor import Tensor

LOWEST, INDEX_BITS, INDEX_MASK, MAGNITUDE = -(2**31), 32, 2**32 - 1, 2**31 - 1


@helper
def key_of(value, index, ascending, scratch):
    """The key of one element; `scratch` has room for a float32. The best element has the greatest key."""
    rank = LOWEST
    if value == value:
        store_number(scratch, 0, value + np.float32(0))  # makes -0 equal to 0
        bits = load_integer(scratch, "i32")
        rank = bits if bits >= 0 else bits ^ MAGNITUDE
    if ascending:
        rank = ~rank
    return (rank << INDEX_BITS) | (INDEX_MASK - index)


@helper
def sift_down(heap, root, count):
    """Restore the heap of `count` keys, least on top, in which the key at `root` may be too great."""
    key = load_integer(heap + 8 * root, "i64")
    while 2 * root + 1 < count:
        child = 2 * root + 1
        least = load_integer(heap + 8 * child, "i64")
        if child + 1 < count:
            other = load_integer(heap + 8 * child + 8, "i64")
            if other < least:
                child, least = child + 1, other
        if key <= least:
            break
        store_integer(heap + 8 * root, "i64", least)
        root = child
    store_integer(heap + 8 * root, "i64", key)


def best_of_rows():
    """Native: the indices of the k best elements of each row, best first. Scalars: x's dtype's number, ascending."""

    def run(args, ith, nth):
        kind, ascending = scalar(args, 2, 0), scalar(args, 2, 1)
        n, k, step = size(args, 1, 3), size(args, 0, 3), stride(args, 1, 3)
        heap = scalar(args, 2, 2) + ith * 8 * (k + 1)
        scratch = heap + 8 * k
        first, last = share(rows(args, 0), ith, nth)
        for row in range(first, last):
            x, target = broadcast_row_address(args, 1, row, 0), row_address(args, 0, row)
            for i in range(k):
                store_integer(heap + 8 * i, "i64", key_of(load_number(x + i * step, kind), i, ascending, scratch))
            for i in range(k // 2 - 1, -1, -1):
                sift_down(heap, i, k)
            for i in range(k, n):
                key = key_of(load_number(x + i * step, kind), i, ascending, scratch)
                if key > load_integer(heap, "i64"):
                    store_integer(heap, "i64", key)
                    sift_down(heap, 0, k)
            for i in range(k - 1, -1, -1):
                store_integer(target + 4 * i, "i32", INDEX_MASK - (load_integer(heap, "i64") & INDEX_MASK))
                store_integer(heap, "i64", load_integer(heap + 8 * i, "i64"))
                sift_down(heap, 0, i)

    return run


def heaps(node: Tensor, threads: int) -> int:
    """Bytes of every thread's heap."""
    return threads * 8 * (node.shape[-1] + 1)


def calls(node: Tensor) -> list[Call]:
    """One call; top_k takes the largest first, as argsort does where it is told so."""
    (x,) = present(node)
    scalars = [x.dtype.gguf, not node.params.get("descending", True)]
    return [Call(native(best_of_rows), [node, x], scalars, work=30 * x.size)]


lowering(ops.argsort, workspace=heaps)(calls)
lowering(ops.top_k, workspace=heaps)(calls)
