"""Fusion of a token's absorbed queries: the product of the part that does not turn, and the part that does, are written
where concat would bring them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from graphrt import dtypes, ops
from graphrt.backends.cuda import products_many
from graphrt.backends.cuda.launch import Argument, Launch, Part
from graphrt.backends.cuda.products_few import Few, few_of
from graphrt.backends.cuda.rope import Job
from graphrt.patterns import Coming
from graphrt.splits import value_of
from graphrt.tensor import Tensor


@dataclass(frozen=True)
class Absorption:
    """q' = [Wᵀ · q_nope, rope(q_pe)] of one token, models/mla.py's.

    Args:
        nodes: the product and the concat.
        job: the rope of the part that turns.
        product: with few rows; it reads and writes views that no graph knows.
        parts: of which tensors these are views.
    """

    nodes: tuple[Tensor, Tensor]
    job: Job
    product: Few
    parts: tuple[Part, Part]

    def launches(self) -> list[Launch]:
        """Those of the product."""
        views = {part.view: part for part in self.parts}

        def known(argument: Argument) -> Argument:
            return views.get(argument, argument) if isinstance(argument, Tensor) else argument

        return [
            replace(launch, arguments=[known(each) for each in launch.arguments]) for launch in self.product.launches()
        ]


def absorption(coming: Coming, job: Job, members: Sequence[Tensor]) -> Absorption | None:
    """What a job that turns queries is a part of, if all of it could run with these members."""
    queries = job.work
    if queries is None or not job.turns or job.store is not None or job.tokens != 1 or queries.rank != 3:
        return None
    found = _readers(coming, queries)
    if found is None:
        return None
    product, joined = found
    if not coming.readers.are_within(queries, found) or not coming.readers.are_within(product, [joined]):
        return None
    if not coming.is_ready(product, members) or not coming.is_ready(joined, [*members, product]):
        return None
    return _over_views(queries, product, joined, job)


def _readers(coming: Coming, queries: Tensor) -> tuple[Tensor, Tensor] | None:
    """The product of queries with few rows, and the concat of its result and queries along the last axis."""
    for joined in coming.after_first():
        if joined.op is not ops.concat or joined.rank != 3 or joined.params["axis"] % 3 != 2:
            continue
        left, right = joined.srcs
        assert left is not None
        assert right is not None
        product = value_of(left)
        if value_of(right) is not queries or product.op is not ops.mul_mat or not product.size:
            continue
        x = product.srcs[1]
        is_few = not products_many.takes(product)
        return (product, joined) if is_few and x is not None and value_of(x) is queries else None
    return None


def _over_views(queries: Tensor, product: Tensor, joined: Tensor, job: Job) -> Absorption | None:
    """The fusion, if views are all heads' parts: queries [1, H, D], product [H, 1, r], joined [1, H, r + dr]."""
    source, (w, x), (left, right) = queries.srcs[0], product.srcs, joined.srcs
    assert source is not None
    assert w is not None
    assert x is not None
    assert left is not None
    assert right is not None
    first, heads, rank = queries.params["first"], queries.shape[1], product.shape[-1]
    size = dtypes.f32.nbytes
    are_floats = all(each.dtype is dtypes.f32 for each in (queries, source, joined))
    is_plain = are_floats and source.strides == queries.strides and product.is_dense and product.shape[:2] == (heads, 1)
    is_all_of_product = left.shape == (1, heads, rank) and left.offset == product.offset and left.is_dense
    is_before = x.shape == (heads, 1, x.shape[-1]) and x.shape[-1] <= first and x.offset == queries.offset
    is_before &= x.strides[::2] == queries.strides[1:]
    is_end = right.shape == (1, heads, queries.shape[-1] - first) and right.offset == queries.offset + first * size
    is_end &= right.strides[1:] == queries.strides[1:]
    if not (is_plain and is_all_of_product and is_before and is_end):
        return None

    def view(whole: Tensor, like: Tensor, strides: tuple[int, ...], before: int) -> Part:
        return Part(whole, Tensor("", dtypes.f32, like.shape, strides=strides, view_of=whole, offset=before * size))

    reads, writes = view(source, x, x.strides, 0), view(joined, product, (*joined.strides[1::-1], size), 0)
    turned = view(source, right, right.strides, first), view(joined, right, joined.strides, rank)
    few = few_of(writes.view, w, reads.view)
    return Absorption((product, joined), replace(job, turned=turned), few, (reads, writes))
