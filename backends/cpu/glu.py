"""Kernels of the gated linear units: swiglu, geglu, reglu."""

from __future__ import annotations

from graphrt import ops
from graphrt.backends.cpu import host
from graphrt.backends.cpu.elementwise import call_of, map_two
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.jit import native
from graphrt.backends.cpu.registry import Call, lowering
from graphrt.backends.cpu.unary import gelu_of, relu_of, silu_of
from graphrt.tensor import Tensor

ACTIVATIONS = {"swiglu": silu_of, "geglu": gelu_of, "reglu": relu_of}


def gated(lanes, name):
    """The gated unit of that name."""
    activation = ACTIVATIONS[name]

    @helper
    def gate_times_up(gate, up):
        return activation(gate) * up

    return map_two(lanes, gate_times_up)


def calls(node: Tensor) -> list[Call]:
    assert node.op is not None
    return [call_of(native(gated, host.level().lanes, node.op.name), node, each=3)]


for _name in ACTIVATIONS:
    lowering(getattr(ops, _name))(calls)
