"""Launches of mixtures of experts: products with the matrices that ids name, and sums of what experts made."""

from __future__ import annotations

from collections.abc import Sequence

from graphrt import ops
from graphrt.backends.cuda.launch import Launch, Step, Whole
from graphrt.backends.cuda.matmul import product_launches, product_workspace
from graphrt.backends.cuda.registry import lowering
from graphrt.backends.cuda.units import Unit
from graphrt.kernels import FLOATS, floats
from graphrt.tensor import Tensor

THREADS = 256

UNIT = Unit("weighted_sum", [f"weighted_sum<{x}, {w}>" for x in FLOATS for w in FLOATS])


@lowering(ops.mul_mat_id, workspace=product_workspace)
def _(node: Tensor) -> Sequence[Step]:
    return product_launches(node)


@lowering(ops.weighted_sum, takes=floats)
def _(node: Tensor) -> list[Launch]:
    x, weights = node.srcs
    assert x is not None
    assert weights is not None
    kernel = UNIT.kernel(f"weighted_sum<{x.dtype}, {weights.dtype}>")
    steps = [Whole(step) for step in weights.strides[:2]]  # [T, U] or [T, U, 1]
    tokens, width = node.shape
    return [Launch(kernel, [tokens, -(-width // THREADS)], [THREADS], [node, x, weights, *steps])]
