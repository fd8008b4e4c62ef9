"""Arithmetic element by element, in float32: on two tensors with broadcasting, or on one tensor and numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from graphrt import dtypes
from graphrt.dtypes import Array
from graphrt.op import Meta, Op, op, require
from graphrt.ops.checks import broadcast, like, require_dtype, require_float, rounded
from graphrt.tensor import Shape, Tensor

if TYPE_CHECKING:
    from graphrt.testing import Draw


@op(inplace=["a", "b"])
def add(a: Tensor, b: Tensor) -> Meta:
    """Add two tensors: y = a + b, with NumPy's broadcasting both ways.

    Args:    a, b f32|f16|bf16 (they may differ), any strides, shapes that broadcast
    Returns: the broadcast shape in a's dtype; the sum is taken in f32
    Raises:  GraphError if the shapes do not broadcast
    """
    return _both("add", a, b)


@op(inplace=["a", "b"])
def sub(a: Tensor, b: Tensor) -> Meta:
    """Subtract: y = a - b, with NumPy's broadcasting both ways.

    Args:    a, b f32|f16|bf16 (they may differ), any strides, shapes that broadcast
    Returns: the broadcast shape in a's dtype; the difference is taken in f32
    Raises:  GraphError if the shapes do not broadcast
    """
    return _both("sub", a, b)


@op(inplace=["a", "b"])
def mul(a: Tensor, b: Tensor) -> Meta:
    """Multiply element by element: y = a · b, with NumPy's broadcasting both ways.

    Args:    a, b f32|f16|bf16 (they may differ), any strides, shapes that broadcast
    Returns: the broadcast shape in a's dtype; the product is taken in f32
    Raises:  GraphError if the shapes do not broadcast
    """
    return _both("mul", a, b)


@op(inplace=["a", "b"])
def div(a: Tensor, b: Tensor) -> Meta:
    """Divide: y = a / b, with NumPy's broadcasting both ways; x / 0 is an infinity and 0 / 0 NaN.

    Args:    a, b f32|f16|bf16 (they may differ), any strides, shapes that broadcast
    Returns: the broadcast shape in a's dtype; the quotient is taken in f32
    Raises:  GraphError if the shapes do not broadcast
    """
    return _both("div", a, b)


def _both(name: str, a: Tensor, b: Tensor) -> Meta:
    require_float(name, a=a, b=b)
    return Meta(a.dtype, a.shape if a.shape == b.shape else broadcast(name, a.shape, b.shape))


def _broadcastable(draw: Draw) -> tuple[Shape, Shape]:
    """Two shapes: some axes of length 1 in the one or the other, one of them perhaps with fewer axes."""
    full = draw.shape()
    a, b = (tuple(1 if draw.integer(0, 3) == 0 else length for length in full) for _ in range(2))
    fewer = draw.integer(0, len(full) - 1)
    return (a[fewer:], b) if draw.integer(0, 3) == 0 else (a, b[fewer:])


def _define_binary(record: Op, function: Callable[[Array, Array], Array], away_from_zero: bool = False) -> None:
    @record.reference
    def _(a: Array, b: Array) -> Array:
        return rounded(function(dtypes.to_f32(a), dtypes.to_f32(b)), dtypes.of(a))

    @record.cases
    def _(draw: Draw) -> Tensor:
        a, b = _broadcastable(draw)
        return record(draw.tensor(a), draw.tensor(b, low=0.5 if away_from_zero else -1.0))


_define_binary(add, np.add)
_define_binary(sub, np.subtract)
_define_binary(mul, np.multiply)
_define_binary(div, np.divide, away_from_zero=True)


@op(inplace=["x"])
def scale(x: Tensor, *, factor: float = 1.0, bias: float = 0.0) -> Meta:
    """Multiply by a number and add one: y = factor · x + bias.

    Args:    x f32|f16|bf16, any strides;  factor, bias numbers, taken as f32
    Returns: x's shape and dtype
    """
    require_float("scale", x=x)
    return like(x)


@scale.reference
def _(x: Array, *, factor: float, bias: float) -> Array:
    return rounded(np.float32(factor) * dtypes.to_f32(x) + np.float32(bias), dtypes.of(x))


@scale.cases
def _(draw: Draw) -> Tensor:
    return scale(draw.tensor(draw.shape()), factor=draw.number(-2, 2), bias=draw.choice([0.0, draw.number(-2, 2)]))


@op(inplace=["x"])
def clamp(x: Tensor, *, min: float, max: float) -> Meta:
    """Limit every element: y = x where min <= x <= max, else the nearer of the two; NaN stays NaN.

    Args:    x f32|f16|bf16, any strides;  min, max numbers, infinite ones allowed
    Returns: x's shape and dtype
    Raises:  GraphError unless min <= max
    """
    require_float("clamp", x=x)
    require(min <= max, f"[clamp] min {min} must not exceed max {max}; swap them")
    return like(x)


@clamp.reference
def _(x: Array, *, min: float, max: float) -> Array:
    return rounded(np.clip(dtypes.to_f32(x), np.float32(min), np.float32(max)), dtypes.of(x))


@clamp.cases
def _(draw: Draw) -> Tensor:
    low = draw.choice([-float("inf"), draw.number(-1, 0)])
    return clamp(draw.tensor(draw.shape()), min=low, max=draw.choice([float("inf"), draw.number(0, 1)]))


@op(inplace=["x"])
def fill(x: Tensor, *, value: float) -> Meta:
    """Make a tensor of one number, shaped as x: y = value everywhere. x's elements are not read.

    Args:    x any plain dtype, any strides;  value a number, whole for an integer dtype
    Returns: x's shape and dtype
    Raises:  GraphError if x is quantized, or an integer dtype cannot hold the value
    """
    require_dtype("fill", "x", x, (*dtypes.FLOATS, *dtypes.INTEGERS))
    if x.dtype.is_integer:
        limits = np.iinfo(x.dtype.numpy)
        require(
            value == int(value) and limits.min <= value <= limits.max,
            f"[fill] {x.dtype.name} holds whole numbers {limits.min} to {limits.max}, got {value}; use a float dtype",
        )
    return like(x)


@fill.reference
def _(x: Array, *, value: float) -> Array:
    return np.full(x.shape, value, x.dtype)


@fill.cases
def _(draw: Draw) -> Tensor:
    x = draw.tensor(draw.shape(), (*dtypes.FLOATS, *dtypes.INTEGERS))
    return fill(x, value=draw.integer(-100, 100) if x.dtype.is_integer else draw.number(-2, 2))
