"""A ubatch: the inputs of one graph, and the cache that it writes and reads.

T tokens, R rows whose logits are asked for, C cells of the cache, of which attention looks at N, D model width,
H heads, G key/value heads, W width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from graphrt import input, ops
from graphrt.models.kv_cache import KVCache
from graphrt.tensor import Tensor


@dataclass(frozen=True)
class UBatch:
    """The tokens that one graph runs: its inputs, and the cache that it writes and reads."""

    cache: KVCache
    tokens: Tensor  # [T] i32
    positions: Tensor  # [T] i32
    sequences: Tensor  # [T] i32
    cells: Tensor  # [T] i64: the cell that each token is written to
    cell_positions: Tensor  # [N] i32
    cell_sequences: Tensor  # [N] i64
    rows: Tensor | None  # [R] i32: the tokens whose logits are asked for; None: all
    written: list[Tensor] = field(default_factory=list)  # the cache's parts after their writes, in order of the layers

    @classmethod
    def make(cls, cache: KVCache, tokens: int, rows: int, cells: int) -> UBatch:
        """Inputs of a graph for T = tokens, R = rows, N = cells."""
        return cls(
            cache=cache,
            tokens=input("inp_tokens", (tokens,), "i32"),
            positions=input("inp_pos", (tokens,), "i32"),
            sequences=input("inp_seq", (tokens,), "i32"),
            cells=input("inp_cells", (tokens,), "i64"),
            cell_positions=input("inp_cell_pos", (cells,), "i32"),
            cell_sequences=input("inp_cell_seq", (cells,), "i64"),
            rows=None if rows == tokens else input("inp_out_ids", (rows,), "i32"),
        )

    def keep_rows(self, x: Tensor) -> Tensor:
        """The rows of x [T, D] whose logits are asked for: [R, D]."""
        return x if self.rows is None else ops.get_rows(x, self.rows)

    def write(self, layer: int, part: str, rows: Tensor) -> Tensor:
        """Write rows [T, G, W] to the tokens' cells; returns that part of the cache as it is then: [N, G, W]."""
        after = self.cache.write(layer, part, rows, self.cells)  # [C, G, W]
        self.written.append(after)
        return after[: self.cell_positions.shape[0]].named(f"cache_{part}_seen-{layer}")  # [N, G, W]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        """Attention of each token to the cells that it may see.

        Args: q [T, H, Dk], k [N, G, Dk], v [N, G, Dv].
        Returns: [T, H, Dv] f32.
        """
        where = (self.positions, self.sequences, self.cell_positions, self.cell_sequences)
        return ops.attention(q, k, v, *where, scale=scale)
