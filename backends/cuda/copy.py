"""Launches of cont, dup, cast, cpy, repeat and concat."""

from __future__ import annotations

from math import gcd

from graphrt import ops
from graphrt.backends.cuda.blocks import number_of
from graphrt.backends.cuda.elements import THREADS, WARP, WIDTH, blocks, kind, width_of
from graphrt.backends.cuda.launch import Address, Launch, Whole
from graphrt.backends.cuda.registry import lowering
from graphrt.backends.cuda.units import Unit
from graphrt.tensor import Tensor

PLACES = IN_ORDER, SAME, TILED = "IN_ORDER", "SAME", "TILED"  # of copy.cu
BYTES_OF_BLOCK = 64 * THREADS
UNIT = Unit(
    "copy",
    ["copy_dense", *(f"copy_items<{places}>" for places in PLACES), "convert", "from_blocks", "to_blocks"],
    registers=64,
)


def copy(node: Tensor, x: Tensor) -> list[Launch]:
    """The launch that brings x's elements, in order, to the node's memory."""
    if node.dtype is x.dtype:
        if node.is_dense and x.is_dense:
            arguments = [Address(node), Address(x), Whole(x.nbytes)]
            return [Launch(UNIT.kernel("copy_dense"), [blocks(x.nbytes, BYTES_OF_BLOCK)], [THREADS], arguments)]
        return [_items(node, x, SAME if node.shape == x.shape else IN_ORDER)]
    if node.dtype.is_quantized:
        number = number_of(x.dtype) if x.dtype.is_quantized else -1
        arguments = [node, x, Whole(x.size // WARP), kind(node), kind(x), number]
        return [Launch(UNIT.kernel("to_blocks"), [blocks(x.size)], [THREADS], arguments)]
    if x.dtype.is_quantized:
        arguments = [node, x, Whole(x.size), kind(node), number_of(x.dtype), node.is_dense]
        return [Launch(UNIT.kernel("from_blocks"), [blocks(x.size, WIDTH * THREADS)], [THREADS], arguments)]
    both_float = node.dtype.is_float and x.dtype.is_float
    flat = node.is_dense and x.is_dense
    rows = node.shape == x.shape and width_of(node, x) == width_of(x, node) == WIDTH
    width = WIDTH if both_float and (flat or rows) else 1
    arguments = [node, x, kind(node), kind(x), width, flat]
    return [Launch(UNIT.kernel("convert"), [blocks(x.size, width * THREADS)], [THREADS], arguments)]


def _items(node: Tensor, x: Tensor, places: str, *, offset: int = 0) -> Launch:
    """Items as they are: in the largest units, 16 bytes at most, that make up rows and strides of both tensors."""
    bytes_of_item = node.dtype.nbytes
    n_y, n_x = _items_of_row(node), _items_of_row(x)
    y_step, x_step = (tensor.strides[-1] if tensor.shape else bytes_of_item for tensor in (node, x))
    if places != IN_ORDER and node.has_dense_rows and x.has_dense_rows:
        steps = [step for tensor in (node, x) for step in tensor.strides[:-1]]
        unit = gcd(16, n_y * bytes_of_item, n_x * bytes_of_item, offset, *steps)
        n_y, n_x = n_y * bytes_of_item // unit, n_x * bytes_of_item // unit
        bytes_of_item = y_step = x_step = unit
    over, items_of_row = (x, n_x) if places == SAME else (node, n_y)
    count = over.size // max(1, over.shape[-1] if over.shape else 1) * items_of_row
    sizes = [Whole(value) for value in (count, n_y, n_x, y_step, x_step, offset)]
    return Launch(UNIT.kernel(f"copy_items<{places}>"), [blocks(count)], [THREADS], [node, x, *sizes, bytes_of_item])


def _items_of_row(tensor: Tensor) -> int:
    return tensor.blocks_shape[-1] if tensor.shape else 1


def _copy_of_source(node: Tensor) -> list[Launch]:
    (x,) = node.srcs
    assert x is not None
    return copy(node, x)


for _op in (ops.cont, ops.dup, ops.cast):
    lowering(_op)(_copy_of_source)


@lowering(ops.cpy)
def _(node: Tensor) -> list[Launch]:
    x = node.srcs[1]
    assert x is not None
    return copy(node, x)


@lowering(ops.repeat)
def _(node: Tensor) -> list[Launch]:
    (x,) = node.srcs
    assert x is not None
    return [_items(node, x, TILED)]


@lowering(ops.concat)
def _(node: Tensor) -> list[Launch]:
    a, b = node.srcs
    assert a is not None
    assert b is not None
    axis = node.params["axis"] % node.rank
    start = a.blocks_shape[axis] * node.strides[axis]
    return [_items(node, part, SAME, offset=at) for part, at in ((a, 0), (b, start)) if part.size]
