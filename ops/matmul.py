"""Products with matrices, of any dtype on either side, accumulated in float32 or better."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from graphrt import dtypes
from graphrt.dtypes import Array
from graphrt.op import Cost, Meta, op, require
from graphrt.ops.checks import (
    VALUES,
    WEIGHTS,
    broadcast,
    describe,
    present,
    require_dtype,
    require_rank,
    require_values,
)
from graphrt.tensor import Shape, Tensor

if TYPE_CHECKING:
    from graphrt.testing import Draw


def product_tolerance(node: Tensor) -> float:
    """Operands of fewer bits than f32 may be multiplied at their precision, f32 ones not."""
    operands = [src.dtype for src in node.srcs if src is not None and not src.dtype.is_integer]
    return 1e-7 if all(dtype is dtypes.f32 for dtype in operands) else 5e-4


@op(layout={"w": "interleaved"}, tolerance=product_tolerance)
def mul_mat(w: Tensor, x: Tensor) -> Meta:
    """Multiply rows by a matrix: y = x · wᵀ, y[..., n, m] = sum over k of x[..., n, k] · w[..., m, k].

    Args:    w [B..., M, K] floats or quantized, any strides, or interleaved;  x [B..., N, K] floats or quantized, any
             strides; the batch axes broadcast both ways
    Returns: [B..., N, M] f32; products of quantized or 16-bit operands may be taken at their precision, sums in f32
    Raises:  GraphError if the last axes differ, or the batch axes do not broadcast
    """
    batch = _batch("mul_mat", w, x)
    require(
        w.shape[-1] == x.shape[-1],
        f"[mul_mat] the last axes of w {describe(w)} and x {describe(x)} must agree; "
        f"for y = x · w use mul_mat_transposed",
    )
    return Meta(dtypes.f32, (*batch, x.shape[-2], w.shape[-2]))


@mul_mat.reference
def _(w: Array, x: Array) -> Array:
    y: Array = dtypes.to_f32(x) @ dtypes.to_f32(w).swapaxes(-1, -2)
    return y


@op(tolerance=product_tolerance)
def mul_mat_transposed(w: Tensor, x: Tensor) -> Meta:
    """Multiply rows by a matrix, not transposed: y = x · w, y[..., n, k] = sum over m of x[..., n, m] · w[..., m, k].

    A weight stored for mul_mat serves its transpose too: quantized blocks cannot be transposed, and need no copy here.

    Args:    w [B..., M, K] floats or quantized, any strides;  x [B..., N, M] floats or quantized, any strides;
             the batch axes broadcast both ways
    Returns: [B..., N, K] f32; products of quantized or 16-bit operands may be taken at their precision, sums in f32
    Raises:  GraphError if x's last axis is not w's second to last, or the batch axes do not broadcast
    """
    batch = _batch("mul_mat_transposed", w, x)
    require(
        w.shape[-2] == x.shape[-1],
        f"[mul_mat_transposed] the last axis of x {describe(x)} must be the second to last of w {describe(w)}; "
        f"for y = x · wᵀ use mul_mat",
    )
    return Meta(dtypes.f32, (*batch, x.shape[-2], w.shape[-1]))


@mul_mat_transposed.reference
def _(w: Array, x: Array) -> Array:
    y: Array = dtypes.to_f32(x) @ dtypes.to_f32(w)
    return y


def _batch(name: str, w: Tensor, x: Tensor) -> Shape:
    require_dtype(name, "w", w, VALUES if name == "mul_mat_transposed" else WEIGHTS)
    require_values(name, x=x)
    require_rank(name, "w", w, 2, "[B..., M, K]")
    require_rank(name, "x", x, 2, "[B..., N, K]" if name == "mul_mat" else "[B..., N, M]")
    return broadcast(name, w.shape[:-2], x.shape[:-2], "the batch axes of w and x ")


def _cost(node: Tensor) -> Cost:
    w, x = present(node)
    rows = x.shape[-2]
    products = prod(node.shape[:-2]) * rows * w.shape[-2] * w.shape[-1]
    return Cost(flops=2 * products, nbytes=w.nbytes + x.nbytes + node.nbytes, batch=rows)


mul_mat.cost(_cost)
mul_mat_transposed.cost(_cost)


def _batches(draw: Draw) -> tuple[Shape, Shape]:
    """Batch axes of w and x that broadcast: some of length 1, w perhaps with fewer."""
    full = tuple(draw.integer(0, 3) for _ in range(draw.integer(0, 2)))
    w, x = (tuple(1 if draw.integer(0, 2) == 0 else length for length in full) for _ in range(2))
    return w[draw.integer(0, len(full)) :], x


def drawn_weight(draw: Draw, batch: Shape) -> Tensor:
    """A weight [B..., M, K] of any dtype; K = 600 makes several blocks of each."""
    dtype, rows, width = draw.choice(VALUES), draw.side(), draw.choice([draw.side(), 600])
    if dtype.is_quantized and draw.integer(0, 3) == 0:
        return draw.tensor((*batch, -(-rows // dtypes.ROWS) * dtypes.ROWS, width), dtypes.interleaved(dtype))
    if dtype.is_quantized and rows:
        rows = max(rows, 8)  # of fewer products, all may come near zero by chance, where rounding would look like error
    return draw.tensor((*batch, rows, width), dtype)


@mul_mat.cases
def _(draw: Draw) -> Tensor:
    w_batch, x_batch = _batches(draw)
    w = drawn_weight(draw, w_batch)
    fitting = [dtype for dtype in VALUES if w.shape[-1] % dtype.block == 0]
    return mul_mat(w, draw.tensor((*x_batch, draw.side(), w.shape[-1]), draw.choice([dtypes.FLOATS, fitting])))


@mul_mat_transposed.cases
def _(draw: Draw) -> Tensor:
    w_batch, x_batch = _batches(draw)
    rows = draw.choice([draw.side(), 32, 256])
    w = draw.tensor((*w_batch, rows, draw.choice([draw.side(), 600])), VALUES)
    fitting = [dtype for dtype in VALUES if rows % dtype.block == 0]
    return mul_mat_transposed(w, draw.tensor((*x_batch, draw.side(), rows), draw.choice([dtypes.FLOATS, fitting])))
