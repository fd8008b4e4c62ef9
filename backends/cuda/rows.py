"""Launches of get_rows, set_rows and add_id."""

from __future__ import annotations

from graphrt import ops
from graphrt.backends.cuda.blocks import number_of
from graphrt.backends.cuda.elements import THREADS, WARP, WIDTH, blocks, kind, rows_by_eight
from graphrt.backends.cuda.launch import Argument, Launch, Whole
from graphrt.backends.cuda.registry import lowering
from graphrt.backends.cuda.units import Unit
from graphrt.tensor import Tensor

UNIT = Unit(
    "rows",
    ["get_rows", "get_rows_of_integers", "get_rows_of_blocks", "set_rows", "set_rows_in_blocks", "add_id"],
    registers=64,
)


def _width(length: int, *tensors: Tensor) -> int:
    return WIDTH if length % WIDTH == 0 and rows_by_eight(*tensors) else 1


@lowering(ops.get_rows)
def _(node: Tensor) -> list[Launch]:
    x, ids = node.srcs
    assert x is not None
    assert ids is not None
    expression, width = "get_rows", _width(x.shape[-1], x)
    scalars = [kind(x), width]
    if x.dtype.is_quantized:
        expression, width, scalars = "get_rows_of_blocks", WIDTH, [number_of(x.dtype), x.dtype.block]
    elif x.dtype.is_integer:
        expression, width, scalars = "get_rows_of_integers", 1, [x.dtype.nbytes]
    arguments: list[Argument] = [node, x, ids, ids.dtype.nbytes, *scalars]
    grid = [blocks(node.size, THREADS * width)]
    return [Launch(UNIT.kernel(expression), grid, [THREADS], arguments)]


@lowering(ops.set_rows)
def _(node: Tensor) -> list[Launch]:
    _, rows, ids = node.srcs
    assert rows is not None
    assert ids is not None
    before = (node.params["first"] or 0) // node.dtype.block * node.strides[-1]
    batch = node.size // (node.shape[-1] * node.shape[-2])
    count = batch * rows.shape[-2] * rows.shape[-1]
    if count == 0:
        return []
    given: list[Argument] = [node, rows, ids, ids.dtype.nbytes]
    kinds = [kind(node), kind(rows)]
    if node.dtype.is_quantized:
        arguments = [*given, Whole(count // WARP), Whole(before), *kinds]
        return [Launch(UNIT.kernel("set_rows_in_blocks"), [blocks(count)], [THREADS], arguments)]
    width = _width(rows.shape[-1], node, rows)
    arguments = [*given, Whole(count), Whole(before), *kinds, width]
    return [Launch(UNIT.kernel("set_rows"), [blocks(count, THREADS * width)], [THREADS], arguments)]


@lowering(ops.add_id)
def _(node: Tensor) -> list[Launch]:
    x, bias, ids = node.srcs
    assert x is not None
    assert bias is not None
    assert ids is not None
    width = _width(x.shape[-1], x, bias)
    arguments: list[Argument] = [node, x, bias, ids, ids.dtype.nbytes, kind(x), kind(bias), width]
    return [Launch(UNIT.kernel("add_id"), [blocks(node.size, THREADS * width)], [THREADS], arguments)]
