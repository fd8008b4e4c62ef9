"""mul_mat and mul_mat_transposed: one sequence of calls for few columns, and one for many."""

from __future__ import annotations

from collections.abc import Callable

from graphrt.backends.cpu import matmat, transposed
from graphrt.backends.cpu.grouping import Layout, columns, matrices
from graphrt.backends.cpu.jit import Kernel, native
from graphrt.backends.cpu.matvec import mul_mat_columns
from graphrt.backends.cpu.prepare import PIECE_BYTES, group_columns, prepare_rows, prepare_tiles, row_bytes
from graphrt.backends.cpu.registry import Call, lowering
from graphrt.backends.cpu.tile import tile
from graphrt.backends.cpu.vecdot import Units, units_of
from graphrt.ops.matmul import mul_mat, mul_mat_transposed
from graphrt.tensor import Tensor


def has_many_columns(node: Tensor) -> bool:
    """Whether a matrix meets enough columns that its expansion to float32 pays."""
    w, *_ = operands(node)
    return columns(node) >= units(node).many * max(1, matrices(w))


def operands(node: Tensor) -> list[Tensor]:
    """The sources of a product: w, x, and in mul_mat_id the ids."""
    return [src for src in node.srcs if src is not None]


def layout(node: Tensor) -> Layout:
    """The workspace of a product."""
    w, x, *ids = operands(node)
    if has_many_columns(node):
        shape = tile()
        tiles = columns(node) // shape.columns + min(matrices(w), columns(node))
        prepared = tiles * shape.columns * x.shape[-1] * 4
        scratch = max(matmat.scratch_bytes(shape), transposed.scratch_bytes(shape))
    else:
        prepared = x.size // max(1, x.shape[-1]) * row_bytes(units(node).form, x.shape[-1])
        scratch = transposed.scratch_bytes(tile())
    cursors = 8 * matrices(w) if ids else 0
    return Layout(matrices(w), columns(node), prepared, max(PIECE_BYTES, scratch, cursors))


def units(node: Tensor) -> Units:
    """How rows of w are multiplied where columns are few."""
    w, *_ = operands(node)
    return units_of("f32" if node.op is mul_mat_transposed else w.dtype.name, w.has_dense_rows)


def product_calls(node: Tensor) -> list[Call]:
    """The calls of a product: group the columns and prepare x, then multiply."""
    w, x, *_ = operands(node)
    tensors = [node, *node.srcs, *[None] * (3 - len(node.srcs))]
    extras = layout(node).extras
    is_transposed = node.op is mul_mat_transposed

    def call(function: Callable[..., Kernel], *constants: object) -> Call:
        return Call(native(function, *constants), tensors, extras=extras)

    if has_many_columns(node):
        shape = tile()
        multiply = transposed.transposed_tiles if is_transposed else matmat.mul_mat_tiles
        return [
            call(group_columns, shape.columns),
            call(prepare_tiles, shape.columns, x.dtype.name),
            call(multiply, w.dtype.name, shape.lanes, shape.vectors, shape.columns),
        ]
    prepare = call(prepare_rows, units(node).form, units(node).offset, x.dtype.name)
    if is_transposed:
        return [prepare, call(transposed.transposed_columns, w.dtype.name)]
    return [prepare, call(mul_mat_columns, w.dtype.name, w.has_dense_rows)]


def workspace(node: Tensor, threads: int) -> int:
    """Bytes of workspace of a product."""
    return layout(node).nbytes(threads)


lowering(mul_mat, workspace=workspace)(product_calls)
lowering(mul_mat_transposed, workspace=workspace)(product_calls)
