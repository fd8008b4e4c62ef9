"""mul_mat and mul_mat_transposed: one sequence of calls for few columns, and one for many."""

from __future__ import annotations

from graphrt.backends.cpu import host, int8_product, matmat, matmat_bf16, prepare_tiles, transposed
from graphrt.backends.cpu.gated import gated_columns
from graphrt.backends.cpu.grouping import Layout, columns, matrices
from graphrt.backends.cpu.int8_panel import unit_elements
from graphrt.backends.cpu.int8_unpack import UNPACK
from graphrt.backends.cpu.jit import Native, native
from graphrt.backends.cpu.matvec import mul_mat_columns
from graphrt.backends.cpu.prepare import PIECE, PIECE_BYTES, group_columns, prepare_rows, row_bytes
from graphrt.backends.cpu.registry import Call, lowering
from graphrt.backends.cpu.row_products import Rows, rows_of
from graphrt.backends.cpu.tile import tile
from graphrt.ops.matmul import mul_mat, mul_mat_transposed
from graphrt.tensor import Tensor

# Prepared at a time of an x with many columns: a mixture of experts has each token once for every expert that it uses.
SLICE_BYTES = 12 << 20


def has_many_columns(node: Tensor) -> bool:
    """Whether a matrix meets enough columns that unpacking it for tiles of them pays."""
    w, *_ = operands(node)
    many = transposed.MANY if node.op is mul_mat_transposed else rows(node).many_from(w.shape[-1])
    return columns(node) >= many * max(1, matrices(w))


def operands(node: Tensor) -> list[Tensor]:
    """The sources of a product: w, x, and in mul_mat_id the ids."""
    return [src for src in node.srcs if src is not None]


def is_in_int8(node: Tensor) -> bool:
    """Whether a product with many columns is taken in int8: of block-quantized rows of at least a unit."""
    w, *_ = operands(node)
    if node.op is mul_mat_transposed or not w.has_dense_rows or w.dtype.plain.name not in UNPACK:
        return False
    return w.dtype.rows > 1 or w.shape[-1] >= unit_elements(w.dtype.name)


def layout(node: Tensor, halves: int = 1) -> Layout:
    """The workspace of a product, or of two alike and their gated unit."""
    w, x, *ids = operands(node)
    if has_many_columns(node) and is_in_int8(node):
        prepared = x.size // max(1, x.shape[-1]) * int8_product.row_bytes(x.shape[-1])
        scratch = int8_product.scratch_bytes(w.dtype.name, x.shape[-1])
    elif has_many_columns(node):
        shape = tile()
        depth = x.shape[-1] if halves > 1 else min(x.shape[-1], slice_depth(node))
        prepared = tiled_columns(node) * column_bytes(node, depth)
        of_floats = (matmat.scratch_bytes(shape, halves), matmat_bf16.scratch_bytes(halves))
        scratch = max(prepare_tiles.scratch_bytes(shape.columns), transposed.scratch_bytes(shape), *of_floats)
    else:
        prepared = x.size // max(1, x.shape[-1]) * row_bytes(rows(node).form, x.shape[-1])
        scratch = transposed.scratch_bytes(tile())
    cursors = 8 * matrices(w) if ids else 0
    return Layout(matrices(w), columns(node), prepared, max(PIECE_BYTES, scratch, cursors))


def tiled_columns(node: Tensor) -> int:
    """Columns of x as tiles, of which each group's last one may be partly empty, at most."""
    w, *_ = operands(node)
    of_tile = tile().columns
    return (columns(node) // of_tile + min(matrices(w), columns(node))) * of_tile


def column_bytes(node: Tensor, depth: int) -> int:
    """Bytes of `depth` elements of a column of a tile: float32, or words of two bfloat16."""
    return 4 * (-(-depth // 2) if matmat_bf16.takes(node) else depth)


def slice_depth(node: Tensor) -> int:
    """Elements of x's rows that are prepared at a time: as few slices, all about as deep, as SLICE_BYTES allow."""
    depth = operands(node)[1].shape[-1]
    pieces = -(-depth // PIECE)
    pieces_at_once = max(1, SLICE_BYTES // max(1, tiled_columns(node) * column_bytes(node, PIECE)))
    slices = max(1, -(-pieces // pieces_at_once))
    return max(1, -(-pieces // slices)) * PIECE


def rows(node: Tensor) -> Rows:
    """How rows of w are multiplied where columns are few."""
    w, *_ = operands(node)
    return rows_of("f32" if node.op is mul_mat_transposed else w.dtype.name, w.has_dense_rows)


def product_calls(node: Tensor) -> list[Call]:
    """The calls of a product: group the columns and prepare x, then multiply."""
    form = form_of_x(node)
    if form is None:
        return tile_calls(node)
    w, x, *ids = operands(node)
    functions = [preparation(form, x.dtype.name), multiplication(node)]
    if form == "codes":
        functions.insert(0, native(group_columns, 1))
    extras = [*layout(node).offsets, 0, x.shape[-1]]
    return [Call(function, [node, w, x, *(ids or [None])], extras=extras) for function in functions]


def tile_calls(product: Tensor, unit: Tensor | None = None, up: Tensor | None = None) -> list[Call]:
    """The calls of a product that takes x as tiles, slice by slice; or of the gated unit of it and of another.

    Args:
        unit, up: the gated unit whose first half is the product, and its other half, alike. It can be made only where
            K is through, so that all of x is one slice.
    """
    w, x, *ids = operands(product)
    name = "" if unit is None or unit.op is None else unit.op.name
    depth, step = x.shape[-1], slice_depth(product) if unit is None else max(1, x.shape[-1])
    tensors = [product if unit is None else unit, w, x, *(ids or [None])]
    multiplied = tensors if up is None else [unit, w, x, operands(up)[0]]
    prepare, multiply = tile_kernels(product, name)
    offsets = layout(product, 1 if unit is None else 2).offsets
    calls = [Call(native(group_columns, tile().columns), tensors, extras=[*offsets, 0, depth])]
    for first in range(0, max(depth, 1), step):
        extras = [*offsets, first, min(first + step, depth)]
        calls += [Call(prepare, tensors, extras=extras), Call(multiply, multiplied, extras=extras)]
    return calls


def tile_kernels(product: Tensor, unit: str = "") -> tuple[Native, Native]:
    """What prepares x as tiles, and what multiplies w by them; `unit` as of `multiplication`."""
    (w, x, *_), shape, pairs = operands(product), tile(), matmat_bf16.takes(product)
    prepare = native(prepare_tiles.prepare_tiles, shape.columns, x.dtype.name, pairs)
    if pairs:
        return prepare, native(matmat_bf16.mul_mat_pairs, shape.vectors, shape.columns, unit)
    sizes = (w.dtype.name, shape.lanes, shape.vectors, shape.columns)
    if product.op is mul_mat_transposed:
        return prepare, native(transposed.transposed_tiles, *sizes)
    return prepare, native(matmat.mul_mat_tiles, *sizes, unit)


def form_of_x(node: Tensor) -> str | None:
    """The form in which a product takes x row by row; None where it takes slices of x as tiles."""
    if not has_many_columns(node):
        return rows(node).form
    return "codes" if is_in_int8(node) else None


def prepared_bytes(form: str, elements: int) -> int:
    """Bytes of one row of x in that form."""
    return int8_product.row_bytes(elements) if form == "codes" else row_bytes(form, elements)


def preparation(form: str, dtype: str) -> Native:
    """What brings rows of x to that form."""
    if form == "codes":
        return native(int8_product.prepare_codes, dtype)
    return native(prepare_rows, form, dtype)


def multiplication(node: Tensor, unit: str = "") -> Native:
    """What multiplies w by rows of x in the form that it takes; of a gated unit's first product, what makes the unit.

    Args:
        unit: the gated unit's name, swiglu or such; or, of many columns, weighted_sum, which adds up the product.
    """
    w, *_ = operands(node)
    if node.op is mul_mat_transposed:
        return native(transposed.transposed_columns, w.dtype.name)
    if form_of_x(node) == "codes":
        return native(int8_product.mul_mat_codes, w.dtype.name, unit, host.level().lanes)
    if unit:
        return native(gated_columns, w.dtype.name, w.has_dense_rows, host.level().lanes, unit)
    return native(mul_mat_columns, w.dtype.name, w.has_dense_rows)


def workspace(node: Tensor, threads: int) -> int:
    """Bytes of workspace of a product."""
    return layout(node).nbytes(threads)


lowering(mul_mat, workspace=workspace)(product_calls)
lowering(mul_mat_transposed, workspace=workspace)(product_calls)
