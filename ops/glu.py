"""Gated linear units: one half of a feed-forward layer's hidden values lets the other through."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from graphrt import dtypes
from graphrt.dtypes import Array
from graphrt.op import Meta, Op, op, require
from graphrt.ops.checks import describe, like, require_float, rounded
from graphrt.ops.unary import gelu_of, relu_of, silu_of
from graphrt.tensor import Tensor

if TYPE_CHECKING:
    from graphrt.testing import Draw


@op(inplace=["gate", "up"])
def swiglu(gate: Tensor, up: Tensor | None = None) -> Meta:
    """Gate with silu: y = gate / (1 + exp(-gate)) · up.

    Args:    gate, up [..., F] f32|f16|bf16, any strides; without up, gate is [..., 2F]: the gate's half, then up's
    Returns: [..., F] in gate's dtype; worked out in f32
    Raises:  GraphError if the shapes differ, or one tensor alone has an odd last axis
    Source:  Shazeer 2020, arXiv:2002.05202
    """
    return _gated("swiglu", gate, up)


@op(inplace=["gate", "up"])
def geglu(gate: Tensor, up: Tensor | None = None) -> Meta:
    """Gate with gelu (the form with tanh): y = gelu(gate) · up.

    Args:    gate, up [..., F] f32|f16|bf16, any strides; without up, gate is [..., 2F]: the gate's half, then up's
    Returns: [..., F] in gate's dtype; worked out in f32
    Raises:  GraphError if the shapes differ, or one tensor alone has an odd last axis
    Source:  Shazeer 2020, arXiv:2002.05202
    """
    return _gated("geglu", gate, up)


@op(inplace=["gate", "up"])
def reglu(gate: Tensor, up: Tensor | None = None) -> Meta:
    """Gate with relu: y = max(gate, 0) · up.

    Args:    gate, up [..., F] f32|f16|bf16, any strides; without up, gate is [..., 2F]: the gate's half, then up's
    Returns: [..., F] in gate's dtype; worked out in f32
    Raises:  GraphError if the shapes differ, or one tensor alone has an odd last axis
    Source:  Shazeer 2020, arXiv:2002.05202
    """
    return _gated("reglu", gate, up)


def _gated(name: str, gate: Tensor, up: Tensor | None) -> Meta:
    require_float(name, gate=gate, up=up)
    if up is not None:
        require(
            gate.shape == up.shape,
            f"[{name}] gate {describe(gate)} and up {describe(up)} differ in shape; reshape one of them",
        )
        return like(gate)
    require(
        gate.rank >= 1 and gate.shape[-1] % 2 == 0,
        f"[{name}] without up, gate must hold both halves [..., 2F], got {describe(gate)}; pass up as well",
    )
    return Meta(gate.dtype, (*gate.shape[:-1], gate.shape[-1] // 2))


def _define(record: Op, activation: Callable[[Array], Array]) -> None:
    @record.reference
    def _(gate: Array, up: Array | None) -> Array:
        half = gate.shape[-1] // 2
        gates, ups = (gate, up) if up is not None else (gate[..., :half], gate[..., half:])
        return rounded(activation(gates.astype(np.float64)) * ups.astype(np.float64), dtypes.of(gate))

    @record.cases
    def _(draw: Draw) -> Tensor:
        shape = draw.shape()
        if draw.boolean():
            return record(draw.tensor((*shape[:-1], 2 * shape[-1]), low=-8.0, high=8.0))
        return record(draw.tensor(shape, low=-8.0, high=8.0), draw.tensor(shape))


_define(swiglu, silu_of)
_define(geglu, gelu_of)
_define(reglu, relu_of)
