"""Reductions of rows to a distribution or a sum."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphrt import dtypes
from graphrt.dtypes import Array
from graphrt.op import Meta, op, require
from graphrt.ops.checks import broadcast, describe, like, require_float, require_rank, rounded
from graphrt.tensor import Tensor

if TYPE_CHECKING:
    from graphrt.testing import Draw


@op(inplace=["x"], tolerance=1e-6)
def soft_max(x: Tensor, mask: Tensor | None = None, sinks: Tensor | None = None, *, scale: float = 1.0) -> Meta:
    """Turn each row into a distribution: y = exp(z) / (sum(exp(z)) + exp(sink)), z = scale · x + mask.

    Args:    x [..., N] f32|f16|bf16, any strides;  mask floats that broadcast to x, -inf hides an element;
             sinks [H] floats, one logit for each head of x [..., H, T, N], which takes its share and is then dropped
    Returns: x's shape and dtype; a row that is hidden everywhere gives zeros
    Raises:  GraphError if mask does not broadcast to x, or sinks is not [H]
    """
    require_float("soft_max", x=x, mask=mask, sinks=sinks)
    require_rank("soft_max", "x", x, 1, "[..., N]")
    if mask is not None:
        require(
            broadcast("soft_max", x.shape, mask.shape, "x and mask ") == x.shape,
            f"[soft_max] mask {describe(mask)} must broadcast to x {describe(x)}, not beyond; repeat x first",
        )
    if sinks is not None:
        require(
            x.rank >= 3 and sinks.shape == x.shape[-3:-2],
            f"[soft_max] sinks {describe(sinks)} must be [H], and x [..., H, T, N], got {describe(x)}; reshape x",
        )
    return like(x)


@soft_max.reference
def _(x: Array, mask: Array | None, sinks: Array | None, *, scale: float) -> Array:
    if x.size == 0:
        return x.copy()
    logits = x.astype(np.float64) * scale
    if mask is not None:
        logits = logits + mask.astype(np.float64)
    sink = None if sinks is None else sinks.astype(np.float64)[:, None, None]
    return rounded(softmax_of(logits, sink), dtypes.of(x))


def softmax_of(logits: Array, sink: Array | None = None) -> Array:
    """The distribution over the last axis; a sink [..., 1] joins the denominator; rows of -inf give zeros."""
    highest = np.max(logits, axis=-1, keepdims=True)
    if sink is not None:
        highest = np.maximum(highest, sink)
    highest = np.where(highest == -np.inf, 0.0, highest)
    powers = np.exp(logits - highest)
    total = np.sum(powers, axis=-1, keepdims=True)
    if sink is not None:
        total = total + np.exp(sink - highest)
    distribution: Array = powers / np.where(total == 0.0, 1.0, total)
    return distribution


@soft_max.cases
def _(draw: Draw) -> Tensor:
    x = draw.tensor(draw.shape(), low=-8.0, high=8.0)
    mask = None
    if draw.boolean():
        lengths = tuple(1 if draw.integer(0, 3) == 0 else length for length in x.shape)
        mask = draw.tensor(lengths[draw.integer(0, x.rank - 1) :], low=-4.0, high=4.0)
        if mask.data is not None and draw.boolean():
            mask.data[mask.data < 0] = -np.inf
    sinks = draw.tensor(x.shape[-3:-2], low=-4.0, high=4.0) if x.rank >= 3 and draw.boolean() else None
    return soft_max(x, mask, sinks, scale=draw.choice([1.0, 0.125, draw.number(0.0, 2.0)]))


@op
def sum_rows(x: Tensor) -> Meta:
    """Add up each row: y[..., 0] = sum(x).

    Args:    x [..., N] f32|f16|bf16, any strides
    Returns: [..., 1] in x's dtype, 0 where N is 0; the sum is taken in f32
    """
    require_float("sum_rows", x=x)
    require_rank("sum_rows", "x", x, 1, "[..., N]")
    return Meta(x.dtype, (*x.shape[:-1], 1))


@sum_rows.reference
def _(x: Array) -> Array:
    return rounded(x.astype(np.float64).sum(axis=-1, keepdims=True), dtypes.of(x))


@sum_rows.cases
def _(draw: Draw) -> Tensor:
    # Values of one sign: a sum near zero would measure the order of additions, not the kernel.
    return sum_rows(draw.tensor(draw.shape(), low=0.1))
