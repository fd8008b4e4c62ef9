"""Launches of cont, dup, cast, cpy, repeat and concat."""

from __future__ import annotations

from math import gcd

from graphrt import dtypes, ops
from graphrt.backends.cuda.blocks import number_of
from graphrt.backends.cuda.elements import THREADS, WARP, WIDTH, blocks, kind, width_of
from graphrt.backends.cuda.launch import MAX_RANK, MOST_BLOCKS, Address, Argument, Launch, Whole, Workspace
from graphrt.backends.cuda.registry import lowering
from graphrt.backends.cuda.units import Unit
from graphrt.dtypes import DType
from graphrt.tensor import Tensor

PLACES = IN_ORDER, SAME, TILED = "IN_ORDER", "SAME", "TILED"  # of copy.cu
BYTES_OF_BLOCK = 64 * THREADS
WORDS = {2: "uint16_t", 4: "uint32_t"}
INSTANCES = [*(f"transpose<{word}>" for word in WORDS.values()), *(f"copy_items<{places}>" for places in PLACES)]
UNIT = Unit("copy", ["copy_dense", "join", *INSTANCES, "convert", "from_blocks", "to_blocks"], registers=64)


def copy(node: Tensor, x: Tensor) -> list[Launch]:
    """The launch that brings x's elements, in order, to the node's memory."""
    if node.dtype is x.dtype:
        if node.is_dense and x.is_dense:
            arguments: list[Argument] = [Address(node), Address(x), Whole(x.nbytes)]
            return [Launch(UNIT.kernel("copy_dense"), [blocks(x.nbytes, BYTES_OF_BLOCK)], [THREADS], arguments)]
        return _transposed(node, x) or [_items(node, x, SAME if node.shape == x.shape else IN_ORDER)]
    if x.dtype.is_quantized and not _is_expanded_at_once(node, x):
        return [_expand(Workspace(), dtypes.f32, x), _convert(node, x, Workspace())]
    if x.dtype.is_quantized:
        return [_expand(Address(node), node.dtype, x)]
    return [_convert(node, x, Address(None))]


def _is_expanded_at_once(node: Tensor, x: Tensor) -> bool:
    """Whether a copy needs no more than the elements of quantized x as dense floats."""
    return node.dtype is x.dtype or (node.is_dense and node.dtype.is_float)


def workspace(node: Tensor) -> int:
    """Bytes of a quantized source's elements in float32, where they are converted further."""
    x = node.srcs[-1]
    assert x is not None
    return 4 * x.size if x.dtype.is_quantized and not _is_expanded_at_once(node, x) else 0


def _expand(target: Address | Workspace, dtype: DType, x: Tensor) -> Launch:
    arguments: list[Argument] = [target, x, Whole(x.size), dtype.gguf, number_of(x.dtype), x.dtype.block]
    return Launch(UNIT.kernel("from_blocks"), [blocks(x.size, WIDTH * THREADS)], [THREADS], arguments)


def _convert(node: Tensor, x: Tensor, expanded: Address | Workspace) -> Launch:
    """From plain dtypes, or from float32 that x was expanded to."""
    given: list[Argument] = [node, x, expanded]
    kinds = [kind(node), kind(x)]
    if node.dtype.is_quantized:
        arguments = [*given, Whole(x.size // WARP), *kinds]
        return Launch(UNIT.kernel("to_blocks"), [blocks(x.size)], [THREADS], arguments)
    flat = node.is_dense and x.is_dense
    rows = node.shape == x.shape and width_of(node, x) == width_of(x, node) == WIDTH
    width = WIDTH if node.dtype.is_float and x.dtype.is_float and (flat or rows) else 1
    arguments = [*given, Whole(x.size), *kinds, width, flat]
    return Launch(UNIT.kernel("convert"), [blocks(x.size, width * THREADS)], [THREADS], arguments)


def _transposed(node: Tensor, x: Tensor) -> list[Launch]:
    """The launch of a copy by tiles, if x's elements lie side by side along an axis that is not the last."""
    word = WORDS.get(node.dtype.nbytes)
    if word is None or node.shape != x.shape or not node.is_dense or x.has_dense_rows:
        return []
    for axis in range(node.rank - 1):
        length, others = node.shape[axis], node.size // (node.shape[axis] * node.shape[-1])
        grid = [blocks(node.shape[-1], WARP), blocks(length, WARP), others]
        if x.strides[axis] == x.dtype.nbytes and length >= WARP and max(grid[1:]) <= MOST_BLOCKS[1]:
            arguments: list[Argument] = [node, x, axis + MAX_RANK - node.rank]
            return [Launch(UNIT.kernel(f"transpose<{word}>"), grid, [WARP, 8], arguments)]
    return []


def _items(node: Tensor, x: Tensor, places: str) -> Launch:
    """Items as they are."""
    bytes_of_item = _bytes_of_item(node, x) if places != IN_ORDER else node.dtype.nbytes
    (n_y, y_step), (n_x, x_step) = _row(node, bytes_of_item), _row(x, bytes_of_item)
    count = node.nbytes // bytes_of_item
    sizes = [Whole(value) for value in (count, n_y, n_x, y_step, x_step)]
    return Launch(UNIT.kernel(f"copy_items<{places}>"), [blocks(count)], [THREADS], [node, x, *sizes, bytes_of_item])


def _bytes_of_item(*tensors: Tensor, offset: int = 0) -> int:
    """The largest unit, 16 bytes at most, that rows and strides are made of; a block where rows are not dense."""
    if not all(tensor.has_dense_rows for tensor in tensors):
        return tensors[0].dtype.nbytes
    steps = [step for tensor in tensors for step in tensor.strides[:-1]]
    return gcd(16, *(_items_of_row(tensor) * tensor.dtype.nbytes for tensor in tensors), offset, *steps)


def _row(tensor: Tensor, bytes_of_item: int) -> tuple[int, int]:
    """Items of a row, and the bytes from one to the next."""
    length, nbytes = _items_of_row(tensor), tensor.dtype.nbytes
    if bytes_of_item != nbytes:
        return length * nbytes // bytes_of_item, bytes_of_item
    return length, tensor.strides[-1] if tensor.shape else nbytes


def _items_of_row(tensor: Tensor) -> int:
    return tensor.blocks_shape[-1] if tensor.shape else 1


def _copy_of_source(node: Tensor) -> list[Launch]:
    (x,) = node.srcs
    assert x is not None
    return copy(node, x)


for _op in (ops.cont, ops.dup, ops.cast):
    lowering(_op, workspace=workspace)(_copy_of_source)


@lowering(ops.cpy, workspace=workspace)
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
    offset = a.blocks_shape[axis] * node.strides[axis]
    parts = [part for part in (a, b) if part.size]
    unit = _bytes_of_item(node, *parts, offset=offset)
    (n_a, a_step), (n_b, b_step), (_, y_step) = _row(a, unit), _row(b, unit), _row(node, unit)
    counts = [a.nbytes // unit, (a.nbytes + b.nbytes) // unit]
    sizes = [Whole(value) for value in (*counts, n_a, n_b, y_step, a_step, b_step, offset)]
    return [Launch(UNIT.kernel("join"), [blocks(counts[1])], [THREADS], [node, a, b, *sizes, unit])]
