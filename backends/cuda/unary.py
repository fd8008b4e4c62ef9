"""Launches of functions of one element."""

from __future__ import annotations

from graphrt import ops
from graphrt.backends.cuda.elementwise import elementwise
from graphrt.backends.cuda.launch import Launch
from graphrt.backends.cuda.registry import lowering
from graphrt.backends.cuda.units import Unit
from graphrt.kernels import floats
from graphrt.op import Op
from graphrt.tensor import Tensor

# Function of unary.cu numbers them alike.
OPS = (ops.silu, ops.sigmoid, ops.gelu, ops.relu, ops.tanh, ops.softplus, ops.sqrt, ops.sqr, ops.exp, ops.neg)
UNIT = Unit("unary", ["elementwise<unary>"], registers=64)


def _unary(op: Op) -> None:
    @lowering(op, takes=floats)
    def _(node: Tensor) -> list[Launch]:
        (x,) = node.srcs
        assert x is not None
        return [elementwise(UNIT.kernel("elementwise<unary>"), node, x, x, p=OPS.index(op))]


for _op in OPS:
    _unary(_op)
