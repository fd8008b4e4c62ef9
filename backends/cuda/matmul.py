"""Launches of products with matrices: with many rows of x on tensor cores, with few as dot products."""

from __future__ import annotations

from collections.abc import Sequence

from graphrt import ops
from graphrt.backends.cuda import products_few, products_many, products_transposed
from graphrt.backends.cuda.launch import Step
from graphrt.backends.cuda.registry import lowering
from graphrt.tensor import Tensor


def product_workspace(node: Tensor) -> int:
    """Bytes of workspace of a mul_mat or mul_mat_id."""
    return products_many.workspace(node) if products_many.takes(node) else products_few.few(node).workspace


def product_launches(node: Tensor) -> Sequence[Step]:
    """The launches of a mul_mat or mul_mat_id."""
    return products_many.launches(node) if products_many.takes(node) else products_few.few(node).launches()


def _transposed_workspace(node: Tensor) -> int:
    return products_many.workspace(node) if products_many.takes(node) else products_transposed.workspace(node)


@lowering(ops.mul_mat, workspace=product_workspace)
def _(node: Tensor) -> Sequence[Step]:
    return product_launches(node)


@lowering(ops.mul_mat_transposed, workspace=_transposed_workspace)
def _(node: Tensor) -> Sequence[Step]:
    return products_many.launches(node) if products_many.takes(node) else products_transposed.launches(node)
