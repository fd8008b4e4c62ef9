"""A product with many rows of x by the device's library, which multiplies bf16 faster than gemm.cu, and nothing else.

Weights become bf16 in the workspace first, a part of their rows after the other where there are many, and so does x;
what is bf16 already, in rows that begin at multiples of 16 bytes, is read as it lies.
"""

from __future__ import annotations

from math import prod

from graphrt import dtypes
from graphrt.backends.cuda.launch import SCRATCH, SCRATCH_ALIGNMENT, Address, Gemm, Step, Workspace
from graphrt.backends.cuda.operands import ONE, aligned, dense_to_rows, to_rows
from graphrt.tensor import Tensor

MOST_EXPANDED = 256 << 20  # bytes of weights in bf16 at once: most matrices whole, and no workspace of gigabytes
ROWS_OF_PART = 256  # a part has a multiple of these, since the library's tiles do


class LibraryProduct:
    """One mul_mat of one matrix, of dense rows of whole steps: where everything lies in the workspace."""

    def __init__(self, node: Tensor) -> None:
        w, x = node.srcs[:2]
        assert w is not None
        assert x is not None
        self.node, self.w, self.x = node, w, x
        self.rows, self.width = w.shape[-2:]
        self.columns = node.size // self.rows
        row_bytes = 2 * self.width
        self.part = self.rows
        if not _is_direct(w):
            parts = -(-self.rows * row_bytes // MOST_EXPANDED)
            self.part = min(self.rows, -(-self.rows // (parts * ROWS_OF_PART)) * ROWS_OF_PART)
        self.w_at = 0 if _is_direct(x) else aligned(self.columns * row_bytes)
        self.scratch_at = self.w_at + (0 if _is_direct(w) else aligned(self.part * row_bytes))
        self.end = self.scratch_at + SCRATCH + SCRATCH_ALIGNMENT

    def launches(self) -> list[Step]:
        found = list[Step]()
        if not _is_direct(self.x):
            even = _lies_evenly(self.x)
            count = prod(self.x.shape[:-1])
            found.append(dense_to_rows(self.x, 0, count, 0) if even else to_rows(self.x, 0, self.width, ONE))
        for first in range(0, self.rows, self.part):
            count = min(self.part, self.rows - first)
            if not _is_direct(self.w):
                found.append(dense_to_rows(self.w, first, count, self.w_at))
            found.append(self._multiply(first, count))
        return found

    def _multiply(self, first: int, count: int) -> Gemm:
        """The product by so many rows of the weights, from number `first` on."""
        w_is_direct, x_is_direct = _is_direct(self.w), _is_direct(self.x)
        return Gemm(
            y=Address(self.node, 4 * first),
            w=Address(self.w) if w_is_direct else Workspace(self.w_at),
            x=Address(self.x) if x_is_direct else Workspace(),
            scratch=Workspace(self.scratch_at),
            rows=count,
            columns=self.columns,
            width=self.width,
            y_step=self.rows,
            w_step=self.w.strides[-2] // 2 if w_is_direct else self.width,
            x_step=self.x.strides[-2] // 2 if x_is_direct else self.width,
        )


def _lies_evenly(tensor: Tensor) -> bool:
    """Whether rows are dense and lie one stride apart."""
    return tensor.has_dense_rows and (prod(tensor.shape[:-2]) == 1 or tensor.is_dense)


def _is_direct(tensor: Tensor) -> bool:
    """Whether the library reads the tensor as it lies."""
    aligned = tensor.strides[-2] % 16 == 0 and tensor.offset % 16 == 0
    apart = tensor.strides[-2] >= 2 * tensor.shape[-1]
    return tensor.dtype is dtypes.bf16 and _lies_evenly(tensor) and aligned and apart
