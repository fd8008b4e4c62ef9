"""Products through np.matmul: y = x · wᵀ. N rows of x, M rows of w, K elements in a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from graphrt import dtypes, ops
from graphrt.backend import Backend, Program, Split
from graphrt.buffer import Location
from graphrt.dtypes import Array
from graphrt.errors import KernelError
from graphrt.tensor import Tensor

TILE_BYTES = 4 << 20


def is_readable(w: Tensor) -> bool:
    """Whether BLAS reads a matrix where it lies: float32 whose rows or columns are dense."""
    return w.dtype is dtypes.f32


def tile_rows(w: Tensor) -> int:
    """Rows of a matrix that are expanded at a time."""
    return max(1, min(w.shape[-2], TILE_BYTES // max(1, 4 * w.shape[-1])))


def tile_bytes(w: Tensor) -> int:
    """Bytes of one expanded tile."""
    return 4 * tile_rows(w) * w.shape[-1]


@dataclass(frozen=True)
class Tile:
    """Rows [first, last) of w as float32, and what makes them; nothing where BLAS reads w itself."""

    first: int
    last: int
    values: Array
    expand: Program | None


@dataclass(frozen=True)
class Product:
    """One mul_mat with the arrays that it reads and writes."""

    x: Array
    y: Array
    tiles: Sequence[Tile]

    @classmethod
    def of(cls, node: Tensor, split: Split, expander: Backend) -> Product:
        """Find a node's arrays, and cut its weight into tiles where it must be expanded."""
        w, x = node.srcs
        if w is None or x is None:
            raise KernelError(f"[blas] {node!r} lacks an operand")
        rows = split.location[x].array(x)  # [B..., N, K]
        y = split.location[node].array(node)  # [B..., N, M]
        if x.is_dense:
            rows, y = rows.reshape(-1, x.shape[-1]), y.reshape(-1, node.shape[-1])
        matrix = w if w.rank == 2 else w[(0,) * (w.rank - 2)]  # [M, K]
        place = split.location[w].after(matrix.offset - w.offset)
        if is_readable(w):
            return cls(rows, y, [Tile(0, matrix.shape[0], place.array(matrix), None)])
        return cls(rows, y, list(_tiles(matrix, place, split.workspace[node], expander)))

    def run(self) -> None:
        """Compute the node."""
        for tile in self.tiles:
            if tile.expand is not None:
                tile.expand.run()
            np.matmul(self.x, tile.values.T, out=self.y[..., tile.first : tile.last])


def _tiles(matrix: Tensor, place: Location, scratch: Location, expander: Backend) -> Iterator[Tile]:
    step = tile_rows(matrix)
    for first in range(0, matrix.shape[0], step):
        part = matrix[first : first + step]
        expanded = ops.cast(part, dtype=dtypes.f32)
        location = {part: place.after(part.offset - matrix.offset), expanded: scratch}
        program = expander.compile(Split(expander, [expanded], location, {}))
        yield Tile(first, first + part.shape[0], scratch.array(expanded), program)


class BlasProgram(Program):
    """The products of a split, one after the other."""

    def __init__(self, products: Sequence[Product]) -> None:
        self._products = products

    def run(self) -> None:
        """Run every product once."""
        for product in self._products:
            product.run()
