"""Mixtures of experts: a token goes through the few experts that its ids name. T tokens, E experts, U used by each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphrt import dtypes
from graphrt.dtypes import Array
from graphrt.op import Cost, Meta, op, require
from graphrt.ops.checks import (
    VALUES,
    WEIGHTS,
    checked_ids,
    describe,
    present,
    require_dtype,
    require_float,
    require_values,
    rounded,
)
from graphrt.ops.matmul import drawn_weight, product_tolerance
from graphrt.tensor import Tensor

if TYPE_CHECKING:
    from graphrt.testing import Draw


@op(layout={"w": "interleaved"}, tolerance=product_tolerance)
def mul_mat_id(w: Tensor, x: Tensor, ids: Tensor) -> Meta:
    """Multiply each token by the matrices of its experts: y[t, u, :] = w[ids[t, u]] · x[t, u, :].

    Args:    w [E, M, K] floats or quantized, any strides, or interleaved;  x [T, U, K] floats or quantized, any
             strides, or [T, 1, K]: one row for all experts of a token;  ids [T, U] i32, in 0..E-1
    Returns: [T, U, M] f32; products of quantized or 16-bit operands may be taken at their precision, sums in f32
    Raises:  GraphError if shapes do not fit, and at run time if an id is outside w
    """
    require_dtype("mul_mat_id", "w", w, WEIGHTS)
    require_values("mul_mat_id", x=x)
    require_dtype("mul_mat_id", "ids", ids, (dtypes.i32,))
    require(
        w.rank == 3 and x.rank == 3 and ids.rank == 2,
        f"[mul_mat_id] needs w [E, M, K], x [T, U, K] or [T, 1, K], and ids [T, U], got {describe(w)}, {describe(x)} "
        f"and {describe(ids)}; reshape them",
    )
    require(
        w.shape[2] == x.shape[2] and x.shape[0] == ids.shape[0] and x.shape[1] in (1, ids.shape[1]),
        f"[mul_mat_id] x {describe(x)} must be [T, U, K] or [T, 1, K], with K = {w.shape[2]} of w {describe(w)} and "
        f"[T, U] = {list(ids.shape)} of ids",
    )
    return Meta(dtypes.f32, (*ids.shape, w.shape[1]))


@mul_mat_id.reference
def _(w: Array, x: Array, ids: Array) -> Array:
    experts = checked_ids("mul_mat_id", ids, len(w))
    rows = np.broadcast_to(dtypes.to_f32(x), (*ids.shape, dtypes.shape_of(x)[-1]))  # [T, U, K]
    y = np.zeros((*ids.shape, w.shape[1]), np.float32)  # [T, U, M]
    for expert in np.unique(experts):
        chosen = experts == expert  # [T, U]
        y[chosen] = rows[chosen] @ dtypes.to_f32(w[expert]).T
    return y


@mul_mat_id.cost
def _(node: Tensor) -> Cost:
    w, x, ids = present(node)
    experts, rows, width = w.shape
    # Only the experts that are used are read; distinct ids are the worst case.
    read = min(experts, ids.size) * rows * w.dtype.row_bytes(width)
    return Cost(
        flops=2 * ids.size * rows * width,
        nbytes=read + x.nbytes + ids.nbytes + node.nbytes,
        batch=ids.shape[0],
        active=min(1.0, ids.shape[1] / max(1, experts)),
    )


@mul_mat_id.cases
def _(draw: Draw) -> Tensor:
    w = drawn_weight(draw, (draw.integer(1, 5),))
    tokens, used = draw.choice([draw.integer(0, 6), 50]), draw.integer(0, 3)
    fitting = [dtype for dtype in VALUES if w.shape[-1] % dtype.block == 0]
    x = draw.tensor((tokens, draw.choice([1, used]), w.shape[-1]), draw.choice([dtypes.FLOATS, fitting]))
    return mul_mat_id(w, x, draw.ids((tokens, used), w.shape[0]))


@op
def weighted_sum(x: Tensor, weights: Tensor) -> Meta:
    """Add up the experts' results for each token: y[t, :] = sum over u of weights[t, u] · x[t, u, :], in rank order.

    Args:    x [T, U, D] f32|f16|bf16, any strides;  weights [T, U] or [T, U, 1] f32|f16|bf16
    Returns: [T, D] in x's dtype; added in f32, u = 0 first, so that every backend rounds alike; the CPU adds up many
             tokens' products in the order of their experts where it makes both in one pass
    Raises:  GraphError if the shapes do not fit
    """
    require_float("weighted_sum", x=x, weights=weights)
    require(
        x.rank == 3 and weights.shape in (x.shape[:2], (*x.shape[:2], 1)),
        f"[weighted_sum] needs x [T, U, D] and weights [T, U] or [T, U, 1], got {describe(x)} and {describe(weights)}",
    )
    return Meta(x.dtype, (x.shape[0], x.shape[2]))


@weighted_sum.reference
def _(x: Array, weights: Array) -> Array:
    tokens, used, width = x.shape
    x32, w32 = dtypes.to_f32(x), dtypes.to_f32(weights).reshape(tokens, used, 1)
    total = np.zeros((tokens, width), np.float32)
    for rank in range(used):
        total += w32[:, rank] * x32[:, rank]
    return rounded(total, dtypes.of(x))


@weighted_sum.cases
def _(draw: Draw) -> Tensor:
    x = draw.tensor(draw.shape(min_rank=3, max_rank=3))
    return weighted_sum(x, draw.tensor(x.shape[:2] if draw.boolean() else (*x.shape[:2], 1), low=0.1))
