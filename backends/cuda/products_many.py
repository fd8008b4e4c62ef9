"""Launches of products with many rows of x, on tensor cores: mul_mat, mul_mat_transposed and mul_mat_id of prompts.

x becomes rows of bf16 in the workspace, and so do weights that gemm.cu cannot take as they lie: float32 ones, those
whose rows are not dense, transposed ones. Products of two float32 operands are made of three products of bf16 parts.
Where quantized weights meet too few rows for wide tiles, x becomes rows of int8 instead, for mmq.cu (products_int8.py).
Long prompts' products with large matrices are left to the device's library (products_library.py), where it has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import prod

from graphrt import dtypes, ops
from graphrt.backends.cuda import products_int8, products_wgmma
from graphrt.backends.cuda.blocks import QUANTIZED
from graphrt.backends.cuda.hardware import present
from graphrt.backends.cuda.launch import Address, Argument, Launch, Step, Whole, Workspace
from graphrt.backends.cuda.operands import (
    ALIGNMENT,
    ONE,
    PARTS_OF_W,
    PARTS_OF_X,
    ROWS,
    Tiles,
    aligned,
    pieces_of_row,
    to_rows,
    to_tiles,
)
from graphrt.backends.cuda.prepared import Prepared
from graphrt.backends.cuda.products_library import LibraryProduct
from graphrt.backends.cuda.units import Unit
from graphrt.tensor import Tensor

FEWEST_ROWS = 9  # of x, as a rule: products of few read weights once for every four
FEWEST_ROWS_OF_RARE = 4  # they read weights of rare dtypes once for each
FEWEST_ROWS_CONVERTED = 16  # and float32 and transposed weights as they are, which become bf16 here first
FEWEST_ROWS_OF_EXPERT = 2  # on average: products of few read an expert's matrix once for each of its rows
# Rows of x, rows of w and their length from which on the library makes a product. To write weights as bf16 and read
# them again takes as long as it multiplies 300 rows of x by them, on an H200 (estimates: 4.3 TB/s, 600 TFLOP/s, of
# which gemm.cu gets some 60 %); smaller matrices make too few tiles to fill a device, and there a launch more counts.
LEAST_OF_LIBRARY = 1024
STEP = 32  # elements of k, as in gemm_weights.cuh
THREADS, SLABS = 128, 4  # as in gemm.cu
BLOCKS_PER_PROCESSOR = 3  # of narrow tiles
LEAST_CHUNKS = 2  # of k, that a part has
SORTING = 512  # threads, as in moe_sort.cu
ELEMENTWISE_BLOCK, MOST_BLOCKS = 256, 4096

PLAIN = ("f16", "bf16")
DIRECT = (*PLAIN, *QUANTIZED)  # dtypes of weights that are read as they lie
IN_WIDE_TILES = ("f16", "bf16", "q4_0", "q8_0", "q4_k", "q5_k", "q6_k")  # the usual ones: kernels compile long
WIDE, NARROW = 128, 64  # rows of x that a tile of y takes
ROWS_OF_TILE = 128  # of w

GEMM = Unit(
    "gemm",
    [f"gemm<{name}, {columns}>" for columns, names in ((WIDE, IN_WIDE_TILES), (NARROW, PLAIN)) for name in names],
    registers=255,
)
SORT = Unit("moe_sort", ["moe_sort"])


def takes(node: Tensor) -> bool:
    """Whether a mul_mat, mul_mat_transposed or mul_mat_id has rows enough for tensor cores."""
    w = node.srcs[0]
    assert w is not None
    fewest = FEWEST_ROWS
    if w.dtype is dtypes.f32 or node.op is ops.mul_mat_transposed:
        fewest = FEWEST_ROWS_CONVERTED
    elif w.dtype.is_quantized and w.dtype.name not in IN_WIDE_TILES:
        fewest = FEWEST_ROWS_OF_RARE
    if node.op is not ops.mul_mat_id:
        return _rows_of_x(node) >= fewest
    ids = node.srcs[2]
    assert ids is not None
    return ids.shape[0] >= fewest and ids.size >= FEWEST_ROWS_OF_EXPERT * w.shape[0]


def workspace(node: Tensor) -> int:
    """Bytes of workspace of such a product."""
    return _product(node).end


def launches(node: Tensor) -> Sequence[Step]:
    """The launches of such a product."""
    return _product(node).launches()


def _product(node: Tensor) -> _Product | LibraryProduct:
    """Who makes a product."""
    if not _is_for_library(node):
        return _Product(node)
    if reason := present().without_library():
        return _Product(node, f"products of long prompts by graphrt's own kernels, since {reason}")
    return LibraryProduct(node)


def _is_for_library(node: Tensor) -> bool:
    """Whether the library is the fastest for a product: of one matrix, of dense rows, with all sides long."""
    w = node.srcs[0]
    assert w is not None
    if node.op is not ops.mul_mat or prod(w.shape[:-2]) > 1 or w.dtype.name not in DIRECT:
        return False  # float32 weights are more precise in parts
    plain = w.has_dense_rows and node.is_dense and w.shape[-1] % STEP == 0
    return plain and min(_rows_of_x(node), *w.shape[-2:]) >= LEAST_OF_LIBRARY


def _rows_of_x(node: Tensor) -> int:
    """Rows of x that meet the same matrix: of all batches, where w has none."""
    w, x = node.srcs[:2]
    assert w is not None
    assert x is not None
    return prod(node.shape[:-1]) if prod(w.shape[:-2]) == 1 else x.shape[-2]


def _batch_of(tensor: Tensor) -> tuple[int, int]:
    """Axes 0 and 1, of four."""
    outer, inner = (1, 1, *tensor.shape)[-4:-2]
    return outer, inner


def _batch_strides(lengths: tuple[int, int], strides: tuple[int, int]) -> tuple[int, int]:
    """Strides of two batch axes, 0 where one repeats."""
    outer, inner = (stride if length > 1 else 0 for length, stride in zip(lengths, strides, strict=True))
    return outer, inner


class _Product:
    """One product: its shape, its tiles, and where everything lies in the workspace.

    Args:
        note: what is to be told of it.
    """

    def __init__(self, node: Tensor, note: str = "") -> None:
        w, x = node.srcs[:2]
        assert w is not None
        assert x is not None
        self.node, self.w, self.x, self.note = node, w, x, note
        self.ids = node.srcs[2] if node.op is ops.mul_mat_id else None
        self.transposed = node.op is ops.mul_mat_transposed
        self.split = w.dtype is x.dtype is dtypes.f32
        self.rows, self.width = node.shape[-1], x.shape[-1]
        self.padded = -(-self.width // STEP) * STEP
        self.steps = self.padded * (3 if self.split else 1) // STEP
        self.columns = node.size // self.rows if self.ids is not None else _rows_of_x(node)
        self.batches = node.size // (self.rows * self.columns)
        row_bytes = self.steps * STEP * 2
        x_rows = self.x_tiles.count * self.x_tiles.rows if self.x_tiles else prod(x.shape[:-1])
        # gemm.cu may read a step past the last row
        self.w_at = self.codes.end if self.codes else aligned(x_rows * row_bytes + STEP * 2)
        w_bytes = 0 if self.w_is_direct else prod(w.shape[:-2]) * self.rows * row_bytes
        self.partial_at = self.w_at + aligned(w_bytes)
        self.pairs_at = self.partial_at + (aligned(node.size * 4 * self.parts) if self.parts > 1 else 0)
        self.tiles_at = self.pairs_at + (0 if self.ids is None else aligned(4 * self.columns))
        self.end = self.tiles_at + (0 if self.ids is None else 16 * (self.column_tiles + 1))
        self.end = max(ALIGNMENT, self.end)  # pointers into it are arguments even where nothing lies there

    @cached_property
    def w_is_direct(self) -> bool:
        """Whether gemm.cu takes the weights as they lie: rows of whole steps, dense; plain ones aligned."""
        dtype, strides = self.w.dtype, self.w.strides
        if dtype.name not in DIRECT or self.transposed or strides[-1] != dtype.nbytes or self.width % STEP:
            return False
        return dtype.is_quantized or all(stride % 16 == 0 for stride in (*strides[:-1], self.w.offset))

    @property
    def w_dtype(self) -> str:
        """What gemm.cu reads."""
        return self.w.dtype.name if self.w_is_direct else "bf16"

    @cached_property
    def by_wgmma(self) -> products_wgmma.Shape | None:
        """Its shape where gemm_wgmma.cu makes the product in gemm.cu's place."""
        experts = None if self.ids is None else self.w.shape[0]
        width = self.steps * STEP
        return products_wgmma.shape_of(self.w_dtype, width, self.rows, self.columns, self.batches, experts)

    @cached_property
    def x_tiles(self) -> Tiles | None:
        """x as gemm_wgmma.cu reads it."""
        if not self.by_wgmma:
            return None
        batches = 1 if self.ids is not None else prod(self.x.shape[:-1]) // self.columns
        return Tiles(self.by_wgmma.tile, self.columns, self.column_tiles, batches * self.column_tiles)

    @cached_property
    def codes(self) -> Prepared | None:
        """x in int8, where mmq.cu makes the product in gemm.cu's place."""
        if self.by_wgmma or self.tile == WIDE or self.w_dtype in PLAIN:
            return None
        return Prepared(prod(self.x.shape[:-1]), self.width)

    @cached_property
    def tile(self) -> int:
        """Columns of a tile: wide where that keeps all processors busy, and experts have rows to fill half of one."""
        if self.by_wgmma:
            return self.by_wgmma.tile
        if self.w_dtype not in IN_WIDE_TILES:
            return NARROW
        if self.ids is not None:
            return WIDE if 2 * self.columns >= WIDE * self.w.shape[0] else NARROW
        return WIDE if self._blocks(WIDE) >= present().processors else NARROW

    def _blocks(self, tile: int) -> int:
        """Tiles in all, of so many rows of x each."""
        rows = products_int8.ROWS if tile == NARROW and self.w_dtype not in PLAIN else ROWS_OF_TILE
        return self.batches * -(-self.rows // rows) * -(-self.columns // tile)

    @cached_property
    def column_tiles(self) -> int:
        """Tiles along rows of x; of experts, the most there can be."""
        if self.ids is not None:
            return self.columns // self.tile + self.w.shape[0]
        return -(-self.columns // self.tile)

    @cached_property
    def parts(self) -> int:
        """Parts of k, that blocks of their own add up, where tiles alone would leave processors idle."""
        if self.by_wgmma:
            return self.by_wgmma.parts
        if self.ids is not None or self.tile == WIDE:
            return 1
        per_processor = products_int8.BLOCKS_PER_PROCESSOR if self.codes else BLOCKS_PER_PROCESSOR
        chunks, room = self.steps * STEP // 256, present().processors * per_processor
        return max(1, min(chunks // LEAST_CHUNKS, room // self._blocks(self.tile)))

    def launches(self) -> list[Launch]:
        found = list[Launch]()
        if self.ids is not None:
            experts, places = self.w.shape[0], self.column_tiles
            arguments = [self.node, self.ids, *self._sorted(), experts, self.tile, places]
            found.append(Launch(SORT.kernel("moe_sort"), [experts + 1], [SORTING], arguments, 4 * experts))
        found.append(self._bring_x())
        if not self.w_is_direct:
            found.append(to_rows(self.w, self.w_at, self.padded, PARTS_OF_W if self.split else ONE, self.transposed))
        found.append(self._gemm())
        if self.parts > 1:
            blocks = min(MOST_BLOCKS, -(-self.node.size // ELEMENTWISE_BLOCK))
            arguments = [self.node, Workspace(self.partial_at), self.parts]
            found.append(Launch(ROWS.kernel("sum_parts"), [blocks], [ELEMENTWISE_BLOCK], arguments))
        return [launch for launch in found if all(launch.grid)]  # rows of length 0 leave nothing to convert

    def _sorted(self) -> list[Argument]:
        """Experts' tiles, and the list of pairs that they are of."""
        return [Workspace(self.tiles_at), Workspace(self.pairs_at)]

    @property
    def _pairs_of_row(self) -> int:
        """Pairs of a token and an expert that read one row of x."""
        return 1 if self.ids is None or self.x.shape[1] > 1 else self.ids.shape[1]

    def _bring_x(self) -> Launch:
        """x to where and how the product reads it."""
        if self.codes:
            return self.codes.fill(self.x)
        parts = PARTS_OF_X if self.split else ONE
        if self.x_tiles:
            experts = None if self.ids is None else [*self._sorted(), self._pairs_of_row]
            return to_tiles(self.x, self.padded, parts, self.x_tiles, experts)
        return to_rows(self.x, 0, self.padded, parts)

    def _gemm(self) -> Launch:
        w, x, nothing = self.w, self.x, Address(None)
        row_bytes = self.steps * STEP * 2
        if self.w_is_direct:
            w_data, w_row, row_bytes = Address(w), w.strides[-2], w.dtype.row_bytes(self.width)
            w_strides = (0, 0, *w.strides[:-2])[-2:]
        else:
            w_data, w_row, matrix = Workspace(self.w_at), row_bytes, self.rows * row_bytes
            w_strides = (_batch_of(w)[1] * matrix, matrix)
        x_batch = self.column_tiles if self.x_tiles else x.shape[-2]  # tiles or rows
        x_strides = (_batch_of(x)[1] * x_batch, x_batch)
        # One matrix for all batches makes one batch of them all, of as many rows of x as of y.
        x_outer, x_inner = _batch_strides(_batch_of(x), x_strides)
        w_outer, w_inner = _batch_strides(_batch_of(w), w_strides)
        arguments: list[Argument] = [self.node, w_data, Whole(w_row), Whole(w_outer), Whole(w_inner)]
        arguments += [*(self.codes.arguments if self.codes else [Workspace(0)]), Whole(x_outer), Whole(x_inner)]
        arguments += [Workspace(self.partial_at) if self.parts > 1 else nothing]
        arguments += [nothing, nothing] if self.ids is None else self._sorted()
        arguments += [] if self.by_wgmma else [self._pairs_of_row]
        arguments += [self.rows, self.columns, _batch_of(self.node)[1], row_bytes, self.steps, self.column_tiles]
        rows = products_int8.ROWS if self.codes else ROWS_OF_TILE
        grid = [self.batches * -(-self.rows // rows) * self.column_tiles, self.parts]
        if self.by_wgmma:
            return products_wgmma.launch(self.w_dtype, self.by_wgmma, grid[0], arguments, self.note)
        if self.codes:
            return products_int8.launch(self.w_dtype, grid, arguments, self.note)
        shared = SLABS * self.tile * STEP * 2 + 2 * ROWS_OF_TILE * pieces_of_row(self.w_dtype) * 16
        kernel = GEMM.kernel(f"gemm<{self.w_dtype}, {self.tile}>")
        return Launch(kernel, grid, [THREADS], arguments, shared, self.note)
