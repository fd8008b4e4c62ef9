"""Launches of products with few rows of x: of quantized weights in whole numbers, of others in float32."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import prod

from graphrt import ops
from graphrt.backends.cuda import products_many
from graphrt.backends.cuda.blocks import QUANTIZED, number_of
from graphrt.backends.cuda.hardware import present
from graphrt.backends.cuda.launch import Address, Argument, Launch, Whole, Workspace
from graphrt.backends.cuda.prepared import STEP, Prepared, expanded, pitch_of
from graphrt.backends.cuda.units import Unit
from graphrt.dtypes import DType
from graphrt.kernels import FLOATS
from graphrt.tensor import Tensor

COLUMNS = (1, 4)
WARPS, ROWS, STAGES = 4, 2, 2  # as in products_few.cuh and mmvq.cuh
WARPS_PER_PROCESSOR = 16
MOST_AT_ONCE = 3  # matrices that mmvq.cu multiplies by one x
LONGEST = 8192  # elements of x that a block may make int8 for itself
MOST_READ = 4 << 20  # bytes of x that all blocks may read for that, which take less time than a launch before

OFTEN = ("q4_0", "q8_0", "q4_k", "q5_k", "q6_k")  # others read w, or the cache, once for each row of x
MMVQ = Unit("mmvq", [f"mmvq<{w}, {n}>" for w in QUANTIZED for n in COLUMNS if n == 1 or w in OFTEN], registers=160)
MMV = Unit("mmv", [*(f"mmv<{w}, {n}>" for w in FLOATS for n in COLUMNS), "mmv_any"])


def columns_for(unit: Unit, dtype: str, count: int) -> int:
    """How many rows of x a kernel of the dtype takes at once, for so many of them."""
    most = COLUMNS[-1]
    return most if count > 1 and f"{unit.name}<{dtype}, {most}>" in unit.instances else 1


def split_of(groups: int, steps: int) -> int:
    """How many warps share a group of rows, out of so many: enough to keep the device busy, and a step for each."""
    split = 1
    while split < WARPS and 2 * split <= steps and groups * split < present().processors * WARPS_PER_PROCESSOR:
        split *= 2
    return split


def few(node: Tensor) -> Few:
    """How a mul_mat or mul_mat_id is made with few rows of x."""
    w, x = node.srcs[:2]
    assert w is not None
    assert x is not None
    return few_of(node, w, x)


def few_of(node: Tensor, w: Tensor, x: Tensor) -> Few:
    """The same of a node, or of a place for a mul_mat's result, whose rows are all the same distance apart."""
    if w.dtype.is_quantized and w.strides[-1] == w.dtype.nbytes:
        return Codes(node, w, x)
    return Values(node, w, x)


def codes_of(node: Tensor | None) -> Codes | None:
    """A product of quantized weights with few rows of x; None for any other node."""
    if node is None or node.op not in (ops.mul_mat, ops.mul_mat_id) or not node.size or products_many.takes(node):
        return None
    found = few(node)
    return found if isinstance(found, Codes) else None


@dataclass(frozen=True, eq=False)
class Few(ABC):
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

    def split(self, columns: int, steps: int) -> int:
        """How many warps share the k of their rows."""
        return split_of(prod(self.grid(columns, ROWS)), steps)

    @property
    @abstractmethod
    def workspace(self) -> int:
        """Bytes of workspace."""

    @abstractmethod
    def launches(self) -> list[Launch]:
        """What makes the product."""


class Codes(Few):
    """Of quantized weights in dense rows, by x in int8."""

    @property
    def prepared(self) -> Prepared:
        return Prepared(self.rows_of_x, self.x.shape[-1])

    @property
    def workspace(self) -> int:
        return self.prepared.end

    def launches(self) -> list[Launch]:
        alone = [multiply([self], self.x)]
        if make_their_own([self], alone):
            return alone
        return [self.prepared.fill(self.x), multiply([self], self.prepared)]


def make_their_own(products: Sequence[Codes], launches: Sequence[Launch]) -> bool:
    """Whether all blocks of these launches, which are of these products of one x, may make x int8 for themselves."""
    x = products[0].x
    nbytes = x.shape[-1] * 4 * sum(prod(launch.grid) for launch in launches)
    one_row = all(product.ids is not None or product.columns == 1 for product in products)
    return one_row and x.dtype.name == "f32" and is_aligned(x) and x.shape[-1] <= LONGEST and nbytes <= MOST_READ


def can_be_at_once(a: Codes, b: Codes) -> bool:
    """Whether products of one x can be parts of one launch."""
    return a.w.dtype is b.w.dtype and a.ids is b.ids is None and a.columns == b.columns and a.batches == b.batches == 1


def x_arguments(x: Prepared | Tensor, other: Tensor) -> list[Argument]:
    """codes, factors, values and own of the kernels; `other` is any tensor."""
    return [Address(None), Address(None), x, 1] if isinstance(x, Tensor) else [*x.arguments, other, 0]


def shared_bytes(warps: int, dtype: DType, x: Prepared | Tensor) -> int:
    """Shared memory of so many warps for rows of the dtype, and for x where blocks make it int8 for themselves."""
    of_x = steps_of(x.shape[-1]) * (STEP + STEP // 32 * 8) if isinstance(x, Tensor) else 0
    return warps * STAGES * ROWS * ((STEP // dtype.block * dtype.nbytes + 30) // 16 * 16) + of_x


def joined_rows(w: Tensor) -> int:
    """How many short rows a warp takes as one: those that make a step together, if they lie without gaps."""
    height, width = w.shape[-2:]
    count = STEP // width if width >= 64 and STEP % width == 0 else 1
    return count if height % count == 0 and w.strides[-2] == w.dtype.row_bytes(width) else 1


def multiply(products: Sequence[Codes], x: Prepared | Tensor) -> Launch:
    """Products by x as one launch: by int8 in the workspace, or by float32 of which blocks make int8 themselves."""
    first = products[0]
    dtype, steps = first.w.dtype, steps_of(first.x.shape[-1])
    columns = 1 if first.ids is not None else columns_for(MMVQ, dtype.name, first.columns)
    joined = min(joined_rows(each.w) for each in products)
    split = split_of(sum(prod(each.grid(columns, ROWS)) for each in products), steps)
    grids = [each.grid(columns, WARPS // split * ROWS * joined) for each in products]
    ends = list(accumulate(grid[1] for grid in grids))
    pairs = [tensor for each in products for tensor in (each.node, each.w)]
    missing = MOST_AT_ONCE - len(products)
    ids = first.node if first.ids is None else first.ids
    return Launch(
        MMVQ.kernel(f"mmvq<{dtype}, {columns}>"),
        [grids[0][0], ends[-1], grids[0][2]],
        [WARPS * 32],
        [
            *[*pairs, *pairs[:2] * missing],
            *[*ends, *ends[-1:] * missing][: MOST_AT_ONCE - 1],
            *[ids, *x_arguments(x, first.node), joined, *first.indexing(), split],
        ],
        shared_bytes(WARPS, dtype, x),
    )


def steps_of(width: int) -> int:
    """Steps that a warp goes along a row of so many elements."""
    return -(-width // STEP)


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
        split = self.split(columns, -(-self.x.shape[-1] // 512))
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


def is_aligned(x: Tensor) -> bool:
    """Whether all rows are dense, and begin at multiples of 16 bytes."""
    steps = [step for step, length in zip(x.strides[:-1], x.shape[:-1], strict=True) if length > 1]
    return x.has_dense_rows and all(step % 16 == 0 for step in (*steps, x.offset))
