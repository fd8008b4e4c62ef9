"""Launches of products with few rows of x: of quantized weights in whole numbers, of others in float32."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

from graphrt import ops
from graphrt.backends.cuda.blocks import QUANTIZED, number_of
from graphrt.backends.cuda.launch import Address, Argument, Launch, Whole, Workspace
from graphrt.backends.cuda.registry import FLOATS
from graphrt.backends.cuda.units import Unit
from graphrt.tensor import Tensor

COLUMNS = (1, 4)
WARPS, ROWS, STAGES = 4, 2, 2  # as in mmvq.cu
STEP, STEP_BLOCKS = 2048, 64  # as in q8.cuh
PROCESSORS = 132  # of an H200; what grids are sized by
WARPS_PER_PROCESSOR = 16
THREADS, MOST_BLOCKS = 256, 4096
ALIGNMENT = 256

QUANTIZE = Unit("quantize", ["expand", "quantize"])
OFTEN = ("q4_0", "q8_0", "q4_k", "q5_k", "q6_k")  # others read w, or the cache, once for each row of x
MMVQ = Unit("mmvq", [f"mmvq<{w}, {n}>" for w in QUANTIZED for n in COLUMNS if n == 1 or w in OFTEN])
MMV = Unit("mmv", [*(f"mmv<{w}, {n}>" for w in FLOATS for n in COLUMNS), "mmv_any"])


def aligned(nbytes: int) -> int:
    """So many bytes of the workspace, and those to where the next may begin."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def columns_for(unit: Unit, dtype: str, count: int) -> int:
    """How many rows of x a kernel of the dtype takes at once, for so many of them."""
    most = COLUMNS[-1]
    return most if count > 1 and f"{unit.name}<{dtype}, {most}>" in unit.instances else 1


def few(node: Tensor) -> Few:
    """How a mul_mat or mul_mat_id is made with few rows of x."""
    w, x = node.srcs[:2]
    assert w is not None
    assert x is not None
    if w.dtype.is_quantized and w.strides[-1] == w.dtype.nbytes:
        return Codes(node, w, x)
    return Values(node, w, x)


@dataclass(frozen=True, eq=False)
class Few:
    """A product with few rows of x. Matrices without batch axes take the rows of all batches as one's."""

    node: Tensor
    w: Tensor
    x: Tensor

    @property
    def ids(self) -> Tensor | None:
        return self.node.srcs[2] if self.node.op is ops.mul_mat_id else None

    @cached_property
    def rows_of_x(self) -> int:
        """Of all batches."""
        return prod(self.x.shape[:-1])

    @cached_property
    def columns(self) -> int:
        """Rows of x that meet one matrix, as far as is known before ids are."""
        if self.ids is not None:
            return self.ids.size
        return self.node.size // self.node.shape[-1] if prod(self.w.shape[:-2]) == 1 else self.x.shape[-2]

    @cached_property
    def batches(self) -> int:
        return self.node.size // self.node.shape[-1] // self.columns

    def indexing(self) -> list[Argument]:
        """count, used, x_used, x_outer and x_inner of the kernels: where rows of x and matrices are for a row of y."""
        if self.ids is not None:
            return [self.columns, self.ids.shape[1], self.x.shape[1], 1, 1]
        outer, inner = (1, 1, *self.x.shape)[-4:-2]
        return [self.columns, 0, 0, outer, inner]

    def grid(self, columns: int, rows: int) -> list[int]:
        """Groups of columns, groups of rows, and batches."""
        return [-(-self.columns // columns), -(-self.node.shape[-1] // rows), self.batches]

    def split(self, columns: int, rows: int, steps: int, most: int) -> int:
        """How many warps share the k of their rows: enough warps to keep the device busy, and a step for each."""
        groups, split = prod(self.grid(columns, rows)), 1
        while split < most and 2 * split <= steps and groups * split < PROCESSORS * WARPS_PER_PROCESSOR:
            split *= 2
        return split

    @property
    def workspace(self) -> int:
        raise NotImplementedError

    def launches(self) -> list[Launch]:
        """What makes the product."""
        raise NotImplementedError


class Codes(Few):
    """Of quantized weights in dense rows, by x in int8."""

    @property
    def codes_bytes(self) -> int:
        return self.rows_of_x * -(-self.x.shape[-1] // STEP) * STEP

    @property
    def workspace(self) -> int:
        return aligned(self.codes_bytes) + max(8, self.codes_bytes // 32 * 8)

    def launches(self) -> list[Launch]:
        x, dtype = self.x, self.w.dtype
        codes, factors = Workspace(), Workspace(aligned(self.codes_bytes))
        arguments = [x, codes, factors, Whole(x.shape[-1]), number_of(x.dtype)]
        made = Launch(QUANTIZE.kernel("quantize"), [_blocks(x)], [THREADS], arguments)
        columns = 1 if self.ids is not None else columns_for(MMVQ, dtype.name, self.columns)
        split = self.split(columns, ROWS, -(-x.shape[-1] // STEP), WARPS)
        room = (STEP // dtype.block * dtype.nbytes + 30) // 16 * 16
        product = Launch(
            MMVQ.kernel(f"mmvq<{dtype}, {columns}>"),
            self.grid(columns, WARPS // split * ROWS),
            [WARPS * 32],
            [self.node, self.w, self.ids or self.node, codes, factors, *self.indexing(), split],
            WARPS * STAGES * ROWS * room,
        )
        return [made, product]


class Values(Few):
    """Of weights of any dtype and strides, by x in float32."""

    @property
    def x_is_direct(self) -> bool:
        return self.x.shape[-1] == 0 or (self.x.dtype.name == "f32" and is_aligned(self.x))

    @property
    def workspace(self) -> int:
        return 0 if self.x_is_direct else self.rows_of_x * pitch_of(self.x) * 4

    def launches(self) -> list[Launch]:
        w, dtype = self.w, self.w.dtype
        fast = dtype.is_float and is_aligned(w)
        if fast:
            columns = 1 if self.ids is not None else columns_for(MMV, dtype.name, self.columns)
            kernel = MMV.kernel(f"mmv<{dtype}, {columns}>")
        else:
            columns, kernel = 1, MMV.kernel("mmv_any")
        split = self.split(columns, ROWS, -(-self.x.shape[-1] // 1024), WARPS)
        x_rows: Argument = Address(None) if self.x_is_direct else Workspace()
        arguments = [
            self.node,
            w,
            self.ids or self.node,
            self.x,
            x_rows,
            Whole(pitch_of(self.x)),
            *self.indexing(),
            split,
        ]
        product = Launch(
            kernel,
            self.grid(columns, WARPS // split * ROWS),
            [WARPS * 32],
            arguments if fast else [*arguments, Whole(w.shape[-1]), number_of(dtype)],
        )
        return [product] if self.x_is_direct else [expanded(self.x), product]


def pitch_of(x: Tensor) -> int:
    """Elements of a row of x in float32 in the workspace."""
    return -(-x.shape[-1] // 8) * 8


def expanded(x: Tensor) -> Launch:
    """Puts x into the workspace as rows of float32."""
    blocks, pitch = _blocks(x), pitch_of(x)
    arguments = [x, Workspace(), Whole(x.shape[-1]), Whole(pitch), number_of(x.dtype)]
    return Launch(QUANTIZE.kernel("expand"), [blocks], [THREADS], arguments)


def _blocks(x: Tensor) -> int:
    """Blocks of threads that take 8 elements of x each."""
    return max(1, min(MOST_BLOCKS, -(-prod(x.shape[:-1]) * pitch_of(x) // (8 * THREADS))))


def is_aligned(x: Tensor) -> bool:
    """Whether all rows are dense, and begin at multiples of 16 bytes."""
    steps = [step for step, length in zip(x.strides[:-1], x.shape[:-1], strict=True) if length > 1]
    return x.has_dense_rows and all(step % 16 == 0 for step in (*steps, x.offset))
