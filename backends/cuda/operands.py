"""Operands of products on tensor cores, as rows of bf16 in the workspace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from graphrt import dtypes
from graphrt.backends.cuda.blocks import number_of
from graphrt.backends.cuda.launch import Address, Argument, Launch, Whole, Workspace
from graphrt.backends.cuda.units import Unit
from graphrt.tensor import Tensor

ALIGNMENT = 256
ONE, PARTS_OF_X, PARTS_OF_W = 1, 2, 3  # as in gemm_rows.cu
ALONG_ROWS, ACROSS_ROWS, TRANSPOSED = 0, 1, 2  # likewise
PIECE = 2048  # elements that a block of dense_rows_to_bf16 converts

ROWS = Unit("gemm_rows", ["rows_to_bf16", "x_to_tiles", "dense_rows_to_bf16", "sum_parts"])


def aligned(nbytes: int) -> int:
    """So many bytes of the workspace, and those to where the next may begin."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Tiles:
    """How rows of x are cut for gemm_wgmma.cu.

    Args:
        rows: of a tile, some of which may not be there.
        columns: rows of x in a batch.
        of_batch: tiles of a batch; of experts, all there can be.
        count: tiles in all.
    """

    rows: int
    columns: int
    of_batch: int
    count: int


def to_rows(tensor: Tensor, at: int, padded: int, parts: int, transposed: bool = False) -> Launch:
    """A tensor as rows of bf16 in the workspace."""
    layout = TRANSPOSED if transposed else _layout_of(tensor)
    groups = -(-tensor.shape[-1] // 8) if transposed else padded // 8
    rows = padded if transposed else prod(tensor.shape[:-1])
    grid, block = _geometry_of(layout, rows, groups)
    arguments: list[Argument] = [tensor, Workspace(at), number_of(tensor.dtype), tensor.dtype.block]
    arguments += [padded, parts, layout]
    batches = prod(tensor.shape[:-2]) if transposed else 1
    return Launch(ROWS.kernel("rows_to_bf16"), (*grid, batches), block, arguments)


def to_tiles(x: Tensor, padded: int, parts: int, tiles: Tiles, experts: Sequence[Argument] | None) -> Launch:
    """Rows of x as tiles of bf16 in the workspace.

    Args:
        experts: of experts' tiles, the lists of tiles and pairs (moe_sort.cu), and how many pairs a row of x has.
    """
    layout, places = _layout_of(x), tiles.count * tiles.rows
    grid, block = _geometry_of(layout, places, padded // 8)
    arguments: list[Argument] = [x, Workspace(), *(experts or [Address(None), Address(None), 1])]
    arguments += [number_of(x.dtype), x.dtype.block, padded, parts, layout]
    arguments += [tiles.columns, tiles.rows, tiles.of_batch, places]
    return Launch(ROWS.kernel("x_to_tiles"), grid, block, arguments)


def _layout_of(tensor: Tensor) -> int:
    """Whether neighbours lie in a row or in neighbouring rows."""
    across = not tensor.dtype.is_quantized and tensor.strides[-1] > tensor.strides[-2]
    return ACROSS_ROWS if across else ALONG_ROWS


def _geometry_of(layout: int, rows: int, groups: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Grid and block of threads that convert a group of eight elements of a row each."""
    x, y = (groups, rows) if layout == ALONG_ROWS else (rows, groups)
    width = 32
    while width < min(x, 256):
        width *= 2
    return (-(-y // (256 // width)), -(-x // width)), (width, 256 // width)


def dense_to_rows(tensor: Tensor, first: int, count: int, at: int) -> Launch:
    """So many rows from number `first` on, of a tensor of dense rows that lie evenly, `at` bytes into the workspace."""
    width, step = tensor.shape[-1], tensor.strides[-2]
    arguments: list[Argument] = [Address(tensor, first * step), Whole(step), Workspace(at)]
    arguments += [number_of(tensor.dtype), width]
    return Launch(ROWS.kernel("dense_rows_to_bf16"), [count, -(-width // PIECE)], [256], arguments)


def pieces_of_row(name: str) -> int:
    """Pieces of 16 bytes from row to row of a chunk in shared memory, as Chunk of gemm_weights.cuh has them."""
    dtype = dtypes.get(name)
    if not dtype.is_quantized:
        return 128 * dtype.nbytes // 16
    length = 128 if dtype.block == 32 and dtype.nbytes > 24 else 256
    return (dtype.row_bytes(length) + 15 + 15) // 16 | 1
