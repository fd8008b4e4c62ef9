"""Launches of elementwise arithmetic."""

from __future__ import annotations

from graphrt import ops
from graphrt.backends.cuda.launch import Launch
from graphrt.backends.cuda.registry import FLOATS, floats, lowering
from graphrt.backends.cuda.units import Unit
from graphrt.op import Op
from graphrt.tensor import Tensor

THREADS = 256
MOST_BLOCKS = 4096  # a thread takes more elements where there are more

BINARY = {"add": "add", "sub": "sub", "mul": "mul", "div": "div_"}

UNIT = Unit("elementwise", [f"binary<{f}, {a}, {b}>" for f in BINARY.values() for a in FLOATS for b in FLOATS])


def blocks(count: int) -> int:
    """Blocks of THREADS that take so many elements."""
    return max(1, min(MOST_BLOCKS, -(-count // THREADS)))


def _binary(op: Op) -> None:
    @lowering(op, takes=floats)
    def _(node: Tensor) -> list[Launch]:
        a, b = node.srcs
        assert a is not None
        assert b is not None
        kernel = UNIT.kernel(f"binary<{BINARY[op.name]}, {a.dtype}, {b.dtype}>")
        return [Launch(kernel, [blocks(node.size)], [THREADS], [node, a, b])]


for _op in (ops.add, ops.sub, ops.mul, ops.div):
    _binary(_op)
