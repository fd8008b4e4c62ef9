"""What launches of small ops share: kinds of dtypes, how wide loads may be, and grids over elements and rows."""

from __future__ import annotations

import struct

from graphrt.backends.cuda.launch import Argument, Whole
from graphrt.tensor import Tensor

THREADS = 256
WIDTH = 8  # neighbours that a thread takes at once: 16 bytes of 16-bit elements
WARP = 32


def kind(tensor: Tensor | None) -> int:
    """The number of a dtype in kernels; 0 for an absent tensor."""
    return 0 if tensor is None else tensor.dtype.gguf


def blocks(count: int, each: int = THREADS) -> int:
    """Blocks where one takes `each` of so many."""
    return max(1, -(-count // each))


def is_flat(node: Tensor, *sources: Tensor) -> bool:
    """Whether the node and its sources correspond in one dense run."""
    return node.is_dense and all(source.is_dense and source.shape == node.shape for source in sources)


def rows_by_eight(*tensors: Tensor) -> bool:
    """Whether rows are dense and begin at multiples of 16 bytes from the tensor's start."""
    return all(tensor.has_dense_rows and _outer_steps_are_aligned(tensor) for tensor in tensors)


def _outer_steps_are_aligned(tensor: Tensor) -> bool:
    steps = zip(tensor.blocks_shape[:-1], tensor.strides[:-1], strict=True)
    return all(stride % 16 == 0 for length, stride in steps if length > 1)


def width_of(node: Tensor, *sources: Tensor) -> int:
    """How many neighbours a thread can take: of a row of the node, which each source has, or repeats one element of."""
    if is_flat(node, *sources):
        return WIDTH
    if not node.shape or node.shape[-1] % WIDTH:
        return 1
    whole = [source for source in sources if source.shape and source.shape[-1] > 1]
    return WIDTH if rows_by_eight(*whole) else 1


def row_geometry(rows: int, length: int) -> tuple[list[int], list[int]]:
    """Grid and block where a row has a warp for each 256 elements, at most 32; rows of one warp are four to a block."""
    warps = min(32, -(-max(1, length) // (WARP * WIDTH)))
    rows_of_block = 4 if warps == 1 else 1
    return [blocks(rows, rows_of_block)], [WARP * warps, rows_of_block]


def double(value: float) -> Argument:
    """A float64 argument, as the bits of an int64."""
    return Whole(struct.unpack("q", struct.pack("d", value))[0])
