"""Launches of gated linear units."""

from __future__ import annotations

from graphrt import ops
from graphrt.backends.cuda.elementwise import elementwise
from graphrt.backends.cuda.launch import Launch
from graphrt.backends.cuda.registry import lowering
from graphrt.backends.cuda.units import Unit
from graphrt.kernels import floats
from graphrt.op import Op
from graphrt.tensor import Tensor

OPS = (ops.swiglu, ops.geglu, ops.reglu)
UNIT = Unit("glu", [f"elementwise<{op.name}>" for op in OPS], registers=64)


def _gated(op: Op) -> None:
    @lowering(op, takes=floats)
    def _(node: Tensor) -> list[Launch]:
        gate, up = node.srcs
        assert gate is not None
        kernel = UNIT.kernel(f"elementwise<{op.name}>")
        if up is not None:
            return [elementwise(kernel, node, gate, up)]
        return [elementwise(kernel, node, gate, gate, b_offset=node.shape[-1] * gate.strides[-1])]


for _op in OPS:
    _gated(_op)
