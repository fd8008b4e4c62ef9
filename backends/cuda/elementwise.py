"""Launches of elementwise arithmetic, and of whatever else works element by element on one or two float tensors."""

from __future__ import annotations

import numpy as np

from graphrt import ops
from graphrt.backends.cuda.elements import THREADS, blocks, is_flat, kind, width_of
from graphrt.backends.cuda.launch import Address, Argument, Launch, Whole
from graphrt.backends.cuda.registry import lowering
from graphrt.backends.cuda.units import Kernel, Unit
from graphrt.kernels import floats
from graphrt.op import Op
from graphrt.tensor import Tensor

FUNCTIONS = {"add": "add", "sub": "sub", "mul": "mul", "div": "div_", "scale": "scale", "clamp": "clamp"}
UNIT = Unit("elementwise", ["fill", *(f"elementwise<{function}>" for function in FUNCTIONS.values())], registers=64)


def elementwise(
    kernel: Kernel, node: Tensor, a: Tensor, b: Tensor, *, p: float = 0.0, q: float = 0.0, b_offset: int = 0
) -> Launch:
    """The launch of a kernel of elementwise.cuh: node = f(a, b, p, q), b read `b_offset` bytes further on."""
    width, flat = width_of(node, a, b), is_flat(node, a, b) and not b_offset
    arguments: list[Argument] = [node, a, b, kind(a), kind(b), width, flat, Whole(b_offset), float(p), float(q)]
    return Launch(kernel, [blocks(node.size, THREADS * width)], [THREADS], arguments)


def _binary(op: Op) -> None:
    @lowering(op, takes=floats)
    def _(node: Tensor) -> list[Launch]:
        a, b = node.srcs
        assert a is not None
        assert b is not None
        return [elementwise(UNIT.kernel(f"elementwise<{FUNCTIONS[op.name]}>"), node, a, b)]


for _op in (ops.add, ops.sub, ops.mul, ops.div):
    _binary(_op)


@lowering(ops.scale, takes=floats)
def _(node: Tensor) -> list[Launch]:
    x, params = node.srcs[0], node.params
    assert x is not None
    return [elementwise(UNIT.kernel("elementwise<scale>"), node, x, x, p=params["factor"], q=params["bias"])]


@lowering(ops.clamp, takes=floats)
def _(node: Tensor) -> list[Launch]:
    x, params = node.srcs[0], node.params
    assert x is not None
    return [elementwise(UNIT.kernel("elementwise<clamp>"), node, x, x, p=params["min"], q=params["max"])]


@lowering(ops.fill)
def _(node: Tensor) -> list[Launch]:
    one = np.array([node.params["value"]]).astype(node.dtype.numpy)
    bits = int(np.frombuffer(one.tobytes() * (8 // node.dtype.nbytes), np.int64)[0])
    arguments: list[Argument] = [Address(node), Whole(node.nbytes), Whole(bits)]
    return [Launch(UNIT.kernel("fill"), [blocks(node.nbytes, 16 * THREADS)], [THREADS], arguments)]
