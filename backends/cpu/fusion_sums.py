"""Products with experts and the weighted sum that alone reads them: of few columns (expert_sum.py), and of many
(expert_sums.py). Those of few, and those in int8, may run with other products (see fusion_products.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from graphrt import dtypes
from graphrt.backends.cpu import matmul
from graphrt.backends.cpu.barriers import Span
from graphrt.backends.cpu.expert_sums import SUM, start_sums, turns_bytes
from graphrt.backends.cpu.jit import native
from graphrt.backends.cpu.prepare import group_columns
from graphrt.backends.cpu.registry import Call
from graphrt.backends.cpu.tile import tile
from graphrt.ops.moe import mul_mat_id, weighted_sum
from graphrt.patterns import Coming, Fused
from graphrt.tensor import Tensor


def sum_of(product: Tensor, coming: Coming) -> Tensor | None:
    """The weighted sum that alone reads a product with experts, if it could run with it."""
    if product.op is not mul_mat_id:
        return None
    _, x, _ = matmul.operands(product)
    if x.shape[1] != product.shape[1]:  # one row for all experts, which no model has here
        return None
    total = coming.reader(product, weighted_sum.name, [product])
    if total is None or not coming.readers.are_within(product, [total]):
        return None
    weights = weights_of(total)
    fits = weights.dtype is dtypes.f32 and (weights.is_dense or not matmul.has_many_columns(product))
    return total if fits else None


def weights_of(total: Tensor) -> Tensor:
    """The weights of a weighted sum."""
    weights = total.srcs[1]
    assert weights is not None
    return weights


def sum_of_tiles(coming: Coming, threads: int) -> Fused | None:
    """A product with experts that has many columns and takes x as tiles, and its weighted sum."""
    product = coming.first
    total = sum_of(product, coming)
    if total is None or matmul.form_of_x(product) is not None:
        return None
    nbytes = matmul.layout(product).nbytes(threads) + turns_bytes(total.shape[-1])
    return Fused((product, total), "weighted sum", nbytes, lower=partial(_tile_calls, product, total, threads))


def start_call(total: Tensor, product: Tensor, extras: Sequence[int], base: int, writes: Sequence[Span]) -> Call:
    """The call that makes a sum of many columns ready to be added to, once the tables are there.

    Args:
        extras: as for the kernel that adds.
        base, writes: where its workspace begins, and the parts of the group's that hold the tables and the turns.
    """
    w, _, ids = matmul.operands(product)
    return Call(native(start_sums), [total, w, None, ids], (), extras, 1, base, writes, work=total.size)


def _tile_calls(product: Tensor, total: Tensor, threads: int) -> list[Call]:
    w, x, ids = matmul.operands(product)
    layout, depth, step = matmul.layout(product), x.shape[-1], matmul.slice_depth(product)
    end = layout.nbytes(threads)
    prepare, multiply = matmul.tile_kernels(product, SUM)
    grouped, added = [None, w, x, ids], [total, w, weights_of(total), ids]
    slices = enumerate(range(0, max(1, depth), step))
    extras = [[*layout.offsets, first, min(first + step, depth), end, number] for number, first in slices]
    calls = [
        Call(native(group_columns, tile().columns), grouped, (), extras[0]),
        start_call(total, product, extras[0], 0, [(0, end + turns_bytes(total.shape[-1]))]),
    ]
    for each in extras:
        calls += [Call(prepare, grouped, (), each), Call(multiply, added, (), each)]
    return calls
