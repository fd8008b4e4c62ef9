"""The KV cache: cells that hold what attention needs of one token each, for every layer.

N cells, G key/value heads, W width of one head. A cell has a position and a set of sequences; a token may be written to
any free cell, and attention finds what it may see by the cells' positions and sequences: no order and no mask is kept.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from graphrt import dtypes, ops, state
from graphrt.dtypes import Array, DType
from graphrt.errors import GraphError, SettingsError
from graphrt.tensor import Tensor

EMPTY = -1
MAX_SEQUENCES = 64
BUCKET = 256  # cells that attention looks at come in multiples of this, so that a compiled plan serves many tokens
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")


class Cells:
    """Which cells are in use, by which positions of which sequences.

    Args:
        size: number of cells, the context length.
    """

    def __init__(self, size: int) -> None:
        self.positions = np.full(size, EMPTY, np.int32)  # [N]
        self.sequences = np.zeros(size, np.int64)  # [N], bit s: the cell belongs to sequence s
        self.last = [EMPTY] * MAX_SEQUENCES  # the highest position of each sequence, EMPTY where it has none
        self.used = 0
        self._end = 0  # all cells from here on are free
        self._first_free = 0  # no cell before this one is free

    @property
    def size(self) -> int:
        return len(self.positions)

    def visible_with(self, cells: Array) -> int:
        """The number of cells that attention must look at once `cells` are in use too, in whole buckets."""
        end = max(self._end, int(cells[-1]) + 1)
        return min(self.size, max(BUCKET, -(-end // BUCKET) * BUCKET))

    def require_free(self, count: int) -> None:
        """Raise GraphError unless `count` cells are free."""
        if count > self.size - self.used:
            raise GraphError(
                f"[context] n_ctx is {self.size} tokens, {self.used} are in use, {count} more asked for; "
                f"load the model with n_ctx={self.used + count} or more, shorten the prompt, or clear the context"
            )

    def find(self, count: int) -> Array:
        """Indices of `count` free cells, the lowest ones in rising order, i64.

        Raises: GraphError if fewer are free.
        """
        self.require_free(count)
        first = self._first_free
        if first + count <= self.size and (first >= self._end or self._are_free(slice(first, first + count))):
            return np.arange(first, first + count, dtype=np.int64)
        return np.flatnonzero(self.positions[first:] == EMPTY)[:count] + first

    def occupy(self, cells: Array, positions: Array, sequences: Array) -> None:
        """Give free cells to tokens: their positions, and their one sequence each."""
        self.positions[cells] = positions
        self.sequences[cells] = 1 << sequences.astype(np.int64)
        for sequence, position in zip(sequences.tolist(), positions.tolist(), strict=True):
            self.last[sequence] = max(self.last[sequence], position)
        self.used += len(cells)
        self._end = max(self._end, int(cells[-1]) + 1)
        if cells[0] == self._first_free and cells[-1] == self._first_free + len(cells) - 1:
            self._first_free += len(cells)

    def release(self, cells: Array) -> None:
        """Make cells free again."""
        let_go = int(np.bitwise_or.reduce(self.sequences[cells]))
        self.positions[cells] = EMPTY
        self.sequences[cells] = 0
        taken = np.flatnonzero(self.positions != EMPTY)
        free = np.flatnonzero(self.positions == EMPTY)
        self.used = len(taken)
        self._end = int(taken[-1]) + 1 if len(taken) else 0
        self._first_free = int(free[0]) if len(free) else self.size
        self._find_last(let_go)

    def remove(self, sequence: int, start: int = 0, end: int | None = None) -> None:
        """Take positions start <= p < end out of a sequence; a cell that no sequence needs is freed."""
        inside = self._of(sequence) & (self.positions >= start)
        if end is not None:
            inside &= self.positions < end
        self.sequences[inside] &= ~_bit(sequence)
        self.release(np.flatnonzero(inside & (self.sequences == 0)))
        self._find_last(1 << sequence)

    def copy(self, source: int, target: int) -> None:
        """Let sequence `target` share every cell of `source`; nothing is moved."""
        self.sequences[self._of(source)] |= _bit(target)
        self.last[target] = max(self.last[target], self.last[source])

    def clear(self) -> None:
        """Free every cell."""
        self.release(np.arange(self.size))

    def _find_last(self, sequences: int) -> None:
        """Look up the last position of each of these sequences (a bit set) anew."""
        for sequence in range(MAX_SEQUENCES):
            if sequences >> sequence & 1:
                self.last[sequence] = int(self.positions[self._of(sequence)].max(initial=EMPTY))

    def _are_free(self, cells: slice) -> bool:
        return bool((self.positions[cells] == EMPTY).all())

    def _of(self, sequence: int) -> Array:
        found: Array = (self.sequences & _bit(sequence)) != 0
        return found


class KVCache:
    """Cells, and for every layer the memory behind them.

    Args:
        layers: number of layers.
        size: number of cells.
        layout: the parts of a cell in one layer: name -> (heads G, width W). Keys and values of ordinary attention are
            two parts; the latent cache of multi-head latent attention is one.
        dtype: name of the dtype of all parts.
    Raises: SettingsError if the dtype cannot hold such rows.
    """

    def __init__(self, layers: int, size: int, layout: Mapping[str, tuple[int, int]], dtype: str = "f16") -> None:
        self.dtype = cache_dtype(dtype, layout)
        self.cells = Cells(size)
        self._parts = [
            {
                part: state(f"cache_{part}-{layer}", (size, heads, width), self.dtype)
                for part, (heads, width) in layout.items()
            }
            for layer in range(layers)
        ]

    @property
    def nbytes(self) -> int:
        """Bytes of all cells in all layers."""
        return sum(part.nbytes for parts in self._parts for part in parts.values())

    def write(self, layer: int, part: str, rows: Tensor, cells: Tensor) -> Tensor:
        """Write each token's row to its cell, and return the part as it is after the write.

        Args:
            rows: [T, G, W] of any float dtype.
            cells: [T] i64.
        Returns: [N, G, W].
        """
        memory = self._parts[layer][part]  # [N, G, W]
        size, heads, width = memory.shape
        row = heads * width
        written = ops.set_rows(memory.reshape(size, row), rows.reshape(-1, row), cells)  # [N, G·W]
        return written.reshape(size, heads, width)  # [N, G, W]


def cache_dtype(name: str, layout: Mapping[str, tuple[int, int]]) -> DType:
    """The dtype of that name.

    Raises: SettingsError if a cache of that layout cannot be of it.
    """
    if name.lower() not in CACHE_TYPES:
        raise SettingsError(f'[kv cache] unknown cache_type "{name}"; choose one of {", ".join(CACHE_TYPES)}')
    dtype = dtypes.get(name)
    for part, (_, width) in layout.items():
        if width % dtype.block:
            raise SettingsError(
                f"[kv cache] {part}: heads of {width} elements are not whole blocks of {dtype.block} ({name}); "
                f"choose cache_type f16, bf16 or f32"
            )
    return dtype


def _bit(sequence: int) -> np.int64:
    if not 0 <= sequence < MAX_SEQUENCES:
        raise GraphError(f"[kv cache] sequence {sequence} is out of range; there are 0 to {MAX_SEQUENCES - 1}")
    return np.uint64(1 << sequence).astype(np.int64)
