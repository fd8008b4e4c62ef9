"""Launches of norms."""

from __future__ import annotations

from graphrt import ops
from graphrt.backends.cuda.elements import WIDTH, kind, row_geometry, rows_by_eight
from graphrt.backends.cuda.launch import Address, Launch
from graphrt.backends.cuda.registry import floats, lowering
from graphrt.backends.cuda.units import Unit
from graphrt.tensor import Tensor

UNIT = Unit("norm", ["rms_norm<false>", "rms_norm<true>"], registers=64)


@lowering(ops.rms_norm, takes=floats)
def _(node: Tensor) -> list[Launch]:
    x, weight = node.srcs
    assert x is not None
    return [_launch("rms_norm<false>", node, x, x, x, weight, node.params["eps"])]


def add_rms_norm(add: Tensor, norm: Tensor) -> list[Launch]:
    """The launch of an add of two tensors of one shape and the norm of the sum, as one; both results are written."""
    a, b = add.srcs
    assert a is not None
    assert b is not None
    return [_launch("rms_norm<true>", norm, add, a, b, norm.srcs[1], norm.params["eps"])]


def _launch(
    expression: str, node: Tensor, total: Tensor, a: Tensor, b: Tensor, weight: Tensor | None, eps: float
) -> Launch:
    length = node.shape[-1]
    given = [a, b] if weight is None else [a, b, weight]
    by_eight = length % WIDTH == 0 and rows_by_eight(*given)
    grid, block = row_geometry(node.size // length, length)
    step = 0 if weight is None else weight.strides[-1]
    scalars = [kind(a), kind(b), kind(weight), step, by_eight, float(eps)]
    return Launch(UNIT.kernel(expression), grid, block, [node, total, a, b, Address(weight), *scalars])
