"""A ubatch: the inputs of one graph, and the cache that it writes and reads.

T tokens, R rows whose logits are asked for, C cells of the cache, of which attention looks at N, D model width,
H heads, G key/value heads, W width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from graphrt import input, ops
from graphrt.models.kv_cache import KVCache
from graphrt.ops.rope import Rotation
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
    cell_rotation: Tensor | None  # [N] i32: positions by which attention must turn the keys; None: by none
    rows: Tensor | None  # [R] i32: the tokens whose logits are asked for; None: all
    notes: list[str] = field(default_factory=list)  # how the layers came to their form, for GRAPH_SCHED_DEBUG
    _written: dict[tuple[int, str], Tensor] = field(default_factory=dict)

    @classmethod
    def make(cls, cache: KVCache, tokens: int, rows: int, cells: int, is_shifted: bool = False) -> UBatch:
        """Inputs of a graph for T = tokens, R = rows, N = cells, some of which have moved where `is_shifted`."""
        table = cache.cells
        rotation = table.input("shifts", cells) if is_shifted else None
        return cls(
            cache=cache,
            tokens=input("inp_tokens", (tokens,), "i32"),
            positions=input("inp_pos", (tokens,), "i32"),
            sequences=input("inp_seq", (tokens,), "i32"),
            cells=input("inp_cells", (tokens,), "i64"),
            cell_positions=table.input("positions", cells),
            cell_sequences=table.input("sequences", cells),
            cell_rotation=table.input("positions", cells) if cache.k_rotation == "unroped" else rotation,
            rows=None if rows == tokens else input("inp_out_ids", (rows,), "i32"),
        )

    @property
    def where(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What says who sees whom: the tokens' positions and sequences, then the cells'."""
        return self.positions, self.sequences, self.cell_positions, self.cell_sequences

    @property
    def written(self) -> Sequence[Tensor]:
        """No rows [0, G, W] of each part of the cache after its writes: outputs for which nothing is read back."""
        return [part[:0] for part in self._written.values()]

    @cached_property
    def mask(self) -> Tensor:
        """What each token sees of the cells: 0, or -inf where nothing; [T, N] f32, for graphs of plain products."""
        return input("inp_kq_mask", (self.tokens.shape[0], self.cell_positions.shape[0]))

    def keep_rows(self, x: Tensor) -> Tensor:
        """The rows of x [T, D] whose logits are asked for: [R, D]."""
        return x if self.rows is None else ops.get_rows(x, self.rows)

    def write(self, layer: int, part: str, rows: Tensor, first: int = 0) -> Tensor:
        """Write rows to the tokens' cells, and return what attention sees of that part of the cache then.

        Args:
            rows: [T, G, W]; or a part of it, [T, 1, w], that goes to the columns from `first` on.
        Returns: [N, G, W].
        """
        before = self._written.get((layer, part))
        after = self.cache.write(layer, part, rows, self.cells, first, before)  # [C, G, W]
        self._written[layer, part] = after
        return after[: self.cell_positions.shape[0]].named(f"cache_{part}_seen-{layer}")  # [N, G, W]

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        rope: Rotation | None = None,
        freq_factors: Tensor | None = None,
    ) -> Tensor:
        """Attention of each token to the cells that it may see.

        Args:
            q: [T, H, Dk], k [N, G, Dk], v [N, G, Dv].
            rope, freq_factors: how keys of the model rotate; None: they do not, and neither do moved cells' keys.
        Returns: [T, H, Dv] f32.
        """
        return ops.attention(q, k, v, *self.where, scale=scale, **self.turns(rope, freq_factors))

    def turns(self, rope: Rotation | None, freq_factors: Tensor | None = None) -> dict[str, Any]:
        """The keywords by which an op of attention turns keys by `cell_rotation`; none where it is not to.

        Keys that were rotated once have the rotation's magnitude already.
        """
        if self.cell_rotation is None or rope is None:
            return {}
        rope = rope if self.cache.k_rotation == "unroped" else replace(rope, magnitude=1.0)
        return {"cell_rotation": self.cell_rotation, "freq_factors": freq_factors, "rope": rope}

    def note(self, line: str) -> None:
        """Tell how a layer came to its form; what several layers say is kept once."""
        if line not in self.notes:
            self.notes.append(line)
