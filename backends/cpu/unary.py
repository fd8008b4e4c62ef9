"""Kernels of the functions of one element: silu, sigmoid, gelu, relu, tanh, softplus, sqrt, sqr, exp, neg."""

from __future__ import annotations

import numpy as np

from graphrt import ops
from graphrt.backends.cpu import host, simd, vector_math
from graphrt.backends.cpu.elementwise import call_of, map_one
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.jit import native
from graphrt.backends.cpu.registry import Call, lowering
from graphrt.backends.cpu.simd import select
from graphrt.backends.cpu.vector_math import like
from graphrt.tensor import Tensor

ZERO = np.float32(0.0)
TWICE_ROOT = np.float32(2.0 * np.sqrt(2.0 / np.pi))
CUBIC = np.float32(0.044715)


@helper
def silu_of(x):
    return x * vector_math.sigmoid(x)


@helper
def gelu_of(x):
    """x/2 · (1 + tanh(u)) = x · sigmoid(2u)."""
    return x * vector_math.sigmoid((x * x * x * CUBIC + x) * TWICE_ROOT)


@helper
def relu_of(x):
    return select(x < ZERO, like(x, ZERO), x)


@helper
def square_of(x):
    return x * x


@helper
def negative_of(x):
    return ZERO - x


@helper
def root_of(x):
    return simd.sqrt(x)


_FUNCTIONS = {
    "silu": silu_of,
    "sigmoid": vector_math.sigmoid,
    "gelu": gelu_of,
    "relu": relu_of,
    "tanh": vector_math.tanh,
    "softplus": vector_math.softplus,
    "sqrt": root_of,
    "sqr": square_of,
    "exp": vector_math.exp,
    "neg": negative_of,
}


def unary(lanes, name):
    """One of the functions, by the op's name."""
    function = _FUNCTIONS[name]

    @helper
    def without_numbers(x, p, q):
        return function(x)

    return map_one(lanes, without_numbers)


def calls(node: Tensor) -> list[Call]:
    assert node.op is not None
    return [call_of(native(unary, host.level().lanes, node.op.name), node, (0.0, 0.0), each=3)]


for _name in _FUNCTIONS:
    lowering(getattr(ops, _name))(calls)
