"""Order within rows. NaN counts as lower than every number; equal elements keep their order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphrt import dtypes
from graphrt.dtypes import Array
from graphrt.op import Meta, op, require
from graphrt.ops.checks import describe, require_float, require_rank
from graphrt.tensor import Shape, Tensor

if TYPE_CHECKING:
    from graphrt.testing import Draw


@op(tolerance=0.0)
def argsort(x: Tensor, *, descending: bool = False) -> Meta:
    """Find the order that sorts each row: x[y[0]] <= x[y[1]] <= ...; of equal elements the lower index comes first.

    Args:    x [..., N] f32|f16|bf16, any strides, NaN lowest;  descending: largest first, ties still by the lower index
    Returns: [..., N] i32, indices within the row
    """
    require_float("argsort", x=x)
    require_rank("argsort", "x", x, 1, "[..., N]")
    return Meta(dtypes.i32, x.shape)


@argsort.reference
def _(x: Array, *, descending: bool) -> Array:
    return order_of(x, descending)


def order_of(x: Array, descending: bool) -> Array:
    """The stable order of each row, as i32."""
    values = dtypes.to_f32(x)
    number = ~np.isnan(values)
    values = np.where(number, values, np.float32(0.0))
    keys = (-values, ~number) if descending else (values, number)
    return np.lexsort(keys, axis=-1).astype(np.int32) if x.size else np.zeros(x.shape, np.int32)


@argsort.cases
def _(draw: Draw) -> Tensor:
    return argsort(_with_ties(draw, draw.shape()), descending=draw.boolean())


def _with_ties(draw: Draw, shape: Shape) -> Tensor:
    """Few different numbers, infinities and NaN among them, so that order depends on what the op says of them."""
    x = draw.tensor(shape)
    if x.data is not None and draw.boolean():
        few = np.array([-np.inf, -1.0, -0.0, 0.0, 1.0, np.inf, np.nan, 2.0])
        x.data[...] = few[(dtypes.to_f32(x.data) * 100).astype(np.int64) % len(few)]
    return x


@op(tolerance=0.0)
def top_k(x: Tensor, *, k: int) -> Meta:
    """Find the k largest elements of each row, best first; of equal ones the lower index comes first.

    Args:    x [..., N] f32|f16|bf16, any strides, NaN lowest;  1 <= k <= N
    Returns: [..., k] i32, indices within the row
    Raises:  GraphError if k is not within 1..N
    """
    require_float("top_k", x=x)
    require_rank("top_k", "x", x, 1, "[..., N]")
    require(
        1 <= k <= x.shape[-1],
        f"[top_k] k must be between 1 and the {x.shape[-1]} elements of a row of {describe(x)}, got {k}",
    )
    return Meta(dtypes.i32, (*x.shape[:-1], k))


@top_k.reference
def _(x: Array, *, k: int) -> Array:
    return order_of(x, descending=True)[..., :k]


@top_k.cases
def _(draw: Draw) -> Tensor:
    x = _with_ties(draw, draw.shape(last=draw.side(min=1)))
    return top_k(x, k=draw.integer(1, x.shape[-1]))
