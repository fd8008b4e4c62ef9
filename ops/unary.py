"""Functions of one element: y[i] = f(x[i]), worked out in float32 or better."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from graphrt import dtypes
from graphrt.dtypes import Array
from graphrt.op import Meta, Op, op
from graphrt.ops.checks import like, require_float, rounded
from graphrt.tensor import Tensor

if TYPE_CHECKING:
    from graphrt.testing import Draw


@op(inplace=["x"])
def silu(x: Tensor) -> Meta:
    """Sigmoid linear unit: y = x / (1 + exp(-x)).

    Args:    x f32|f16|bf16, any strides
    Returns: x's shape and dtype
    Source:  Elfwing, Uchibe & Doya 2017, arXiv:1702.03118
    """
    return _one("silu", x)


@op(inplace=["x"])
def sigmoid(x: Tensor) -> Meta:
    """Logistic function: y = 1 / (1 + exp(-x)).

    Args:    x f32|f16|bf16, any strides
    Returns: x's shape and dtype
    """
    return _one("sigmoid", x)


@op(inplace=["x"])
def gelu(x: Tensor) -> Meta:
    """Gaussian error linear unit, in the form with tanh: y = x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))).

    Args:    x f32|f16|bf16, any strides
    Returns: x's shape and dtype
    Source:  Hendrycks & Gimpel 2016, arXiv:1606.08415
    """
    return _one("gelu", x)


@op(inplace=["x"])
def relu(x: Tensor) -> Meta:
    """Rectified linear unit: y = max(x, 0).

    Args:    x f32|f16|bf16, any strides
    Returns: x's shape and dtype
    """
    return _one("relu", x)


@op(inplace=["x"])
def tanh(x: Tensor) -> Meta:
    """Hyperbolic tangent: y = tanh(x).

    Args:    x f32|f16|bf16, any strides
    Returns: x's shape and dtype
    """
    return _one("tanh", x)


@op(inplace=["x"])
def softplus(x: Tensor) -> Meta:
    """Smooth rectifier: y = ln(1 + exp(x)), which does not overflow for large x.

    Args:    x f32|f16|bf16, any strides
    Returns: x's shape and dtype
    """
    return _one("softplus", x)


@op(inplace=["x"])
def sqrt(x: Tensor) -> Meta:
    """Square root: y = √x; NaN below zero.

    Args:    x f32|f16|bf16, any strides
    Returns: x's shape and dtype
    """
    return _one("sqrt", x)


@op(inplace=["x"])
def sqr(x: Tensor) -> Meta:
    """Square: y = x².

    Args:    x f32|f16|bf16, any strides
    Returns: x's shape and dtype
    """
    return _one("sqr", x)


@op(inplace=["x"])
def exp(x: Tensor) -> Meta:
    """Exponential function: y = eˣ.

    Args:    x f32|f16|bf16, any strides
    Returns: x's shape and dtype
    """
    return _one("exp", x)


@op(inplace=["x"])
def neg(x: Tensor) -> Meta:
    """Change the sign: y = -x.

    Args:    x f32|f16|bf16, any strides
    Returns: x's shape and dtype
    """
    return _one("neg", x)


def _one(name: str, x: Tensor) -> Meta:
    require_float(name, x=x)
    return like(x)


def sigmoid_of(x: Array) -> Array:
    """1 / (1 + exp(-x)), through tanh, which cannot overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def silu_of(x: Array) -> Array:
    return x * sigmoid_of(x)


def gelu_of(x: Array) -> Array:
    bell: Array = np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3))
    return (0.5 + 0.5 * bell) * x


def relu_of(x: Array) -> Array:
    return np.maximum(x, 0.0)


def _define(record: Op, function: Callable[[Array], Array], low: float = -4.0) -> None:
    @record.reference
    def _(x: Array) -> Array:
        return rounded(function(x.astype(np.float64)), dtypes.of(x))

    @record.cases
    def _(draw: Draw) -> Tensor:
        widest = draw.choice([1.0, 20.0])
        return record(draw.tensor(draw.shape(), low=low * widest, high=4.0 * widest))


_define(silu, silu_of)
_define(sigmoid, sigmoid_of)
_define(gelu, gelu_of)
_define(relu, relu_of)
_define(tanh, np.tanh)
_define(softplus, lambda x: np.logaddexp(0.0, x))
_define(sqrt, np.sqrt, low=0.0)
_define(sqr, np.square)
_define(exp, np.exp)
_define(neg, np.negative)
