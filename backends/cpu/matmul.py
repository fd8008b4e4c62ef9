"""mul_mat: one calling sequence for few columns and one for many."""

from __future__ import annotations

from graphrt.backends.cpu import matmat
from graphrt.backends.cpu.grouping import Layout, columns, matrices
from graphrt.backends.cpu.jit import native
from graphrt.backends.cpu.matvec import mul_mat_columns
from graphrt.backends.cpu.prepare import PIECE_BYTES, group_columns, prepare_rows, prepare_tiles, row_bytes
from graphrt.backends.cpu.registry import Call, lowering
from graphrt.backends.cpu.tile import tile
from graphrt.backends.cpu.vecdot import units_of
from graphrt.ops.matmul import mul_mat
from graphrt.tensor import Tensor

# From this many columns per matrix on, expanding the weights to float32 pays.
MANY_COLUMNS = 8


def has_many_columns(node: Tensor) -> bool:
    """Whether a matrix meets enough columns that its expansion to float32 pays."""
    w, *_ = operands(node)
    return columns(node) >= MANY_COLUMNS * max(1, matrices(w))


def operands(node: Tensor) -> list[Tensor]:
    """The sources of a product: w, x, and in mul_mat_id the ids."""
    return [src for src in node.srcs if src is not None]


def layout(node: Tensor) -> Layout:
    """The workspace of a product."""
    w, x, *ids = operands(node)
    cursors = 8 * matrices(w) if ids else 0
    if has_many_columns(node):
        shape = tile()
        tiles = columns(node) // shape.columns + min(matrices(w), columns(node))
        prepared = tiles * shape.columns * w.shape[-1] * 4
        scratch = max(matmat.scratch_bytes(shape), PIECE_BYTES)
    else:
        prepared = x.size // max(1, x.shape[-1]) * row_bytes(units_of(w.dtype.name, w.has_dense_rows).form, w.shape[-1])
        scratch = PIECE_BYTES
    return Layout(matrices(w), columns(node), prepared, max(scratch, cursors))


def product_calls(node: Tensor) -> list[Call]:
    """The calls of a product: group the columns and prepare x, then multiply."""
    w, x, *_ = operands(node)
    tensors = [node, *node.srcs, *[None] * (3 - len(node.srcs))]
    extras = layout(node).extras

    def call(function: object, *constants: object) -> Call:
        return Call(native(function, *constants), tensors, extras=extras)

    if has_many_columns(node):
        shape = tile()
        return [
            call(group_columns, shape.columns),
            call(prepare_tiles, shape.columns, x.dtype.name),
            call(matmat.mul_mat_tiles, w.dtype.name, shape.lanes, shape.vectors, shape.columns),
        ]
    units = units_of(w.dtype.name, w.has_dense_rows)
    return [
        call(prepare_rows, units.form, units.offset, x.dtype.name),
        call(mul_mat_columns, w.dtype.name, w.has_dense_rows),
    ]


def workspace(node: Tensor, threads: int) -> int:
    """Bytes of workspace of a product."""
    return layout(node).nbytes(threads)


lowering(mul_mat, workspace=workspace)(product_calls)
