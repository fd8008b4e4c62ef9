"""Launches of soft_max and sum_rows."""

from __future__ import annotations

from graphrt import ops
from graphrt.backends.cuda.elements import kind, row_geometry
from graphrt.backends.cuda.launch import Address, Argument, Launch
from graphrt.backends.cuda.registry import lowering
from graphrt.backends.cuda.units import Unit
from graphrt.kernels import floats
from graphrt.tensor import Tensor

UNIT = Unit("softmax", ["soft_max", "sum_rows"], registers=64)


@lowering(ops.soft_max, takes=floats)
def _(node: Tensor) -> list[Launch]:
    x, mask, sinks = node.srcs
    assert x is not None
    grid, block = row_geometry(node.size // node.shape[-1], node.shape[-1])
    scalars = [kind(x), kind(mask), mask is not None, kind(sinks), 0 if sinks is None else sinks.strides[-1]]
    tensors: list[Argument] = [node, x, mask or x, Address(sinks)]
    arguments = [*tensors, *scalars, float(node.params["scale"])]
    return [Launch(UNIT.kernel("soft_max"), grid, block, arguments)]


@lowering(ops.sum_rows, takes=floats)
def _(node: Tensor) -> list[Launch]:
    (x,) = node.srcs
    assert x is not None
    grid, block = row_geometry(node.size, x.shape[-1])
    return [Launch(UNIT.kernel("sum_rows"), grid, block, [node, x, kind(x)])]
