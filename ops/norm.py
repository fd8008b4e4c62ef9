"""Normalisation of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphrt import dtypes
from graphrt.dtypes import Array
from graphrt.op import Meta, op, require
from graphrt.ops.checks import describe, like, require_float, require_rank, rounded
from graphrt.tensor import Tensor

if TYPE_CHECKING:
    from graphrt.testing import Draw


@op(inplace=["x"])
def rms_norm(x: Tensor, weight: Tensor | None = None, *, eps: float = 1e-6) -> Meta:
    """Scale each row to unit root mean square: y = x / sqrt(mean(x²) + eps) · weight.

    Args:    x [..., D] f32|f16|bf16, any strides;  weight [D] f32|f16|bf16, 1 where absent;  eps >= 0, in units of x²
    Returns: [..., D] in x's dtype; the mean is taken in f32
    Raises:  GraphError if weight is not [D], or eps is negative
    Source:  Zhang & Sennrich 2019, arXiv:1910.07467
    """
    require_float("rms_norm", x=x, weight=weight)
    require_rank("rms_norm", "x", x, 1, "[..., D]")
    if weight is not None:
        require(
            weight.shape == x.shape[-1:],
            f"[rms_norm] weight {describe(weight)} must be [D], the last axis of x {describe(x)}",
        )
    require(eps >= 0, f"[rms_norm] eps must not be negative, got {eps}; 1e-6 is usual")
    return like(x)


@rms_norm.reference
def _(x: Array, weight: Array | None, *, eps: float) -> Array:
    if x.size == 0:
        return x.copy()
    x64 = x.astype(np.float64)
    unit = x64 / np.sqrt(np.mean(x64 * x64, axis=-1, keepdims=True) + eps)
    return rounded(unit if weight is None else unit * weight.astype(np.float64), dtypes.of(x))


@rms_norm.cases
def _(draw: Draw) -> Tensor:
    x = draw.tensor(draw.shape())
    weight = draw.tensor(x.shape[-1:]) if draw.boolean() else None
    return rms_norm(x, weight, eps=draw.choice([1e-6, 1e-5, 0.5]))
