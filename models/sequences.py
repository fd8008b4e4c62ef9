"""What a context can do with the sequences in its cache without running the model, in llama.cpp's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphrt import Scheduler
from graphrt.errors import GraphError
from graphrt.models import saved_state
from graphrt.models.cells import Moves
from graphrt.models.kv_cache import KVCache, read_rows, write_rows


class Sequences:
    """The sequences in a cache.

    Positions p0 <= p < p1 of a sequence are meant; a negative p0 is the beginning and a negative p1 the end.

    Args:
        cache: the cells and their memory.
        scheduler: knows where that memory is.
        identity: what two caches must have in common for the cells of one to be the other's.
    """

    def __init__(self, cache: KVCache, scheduler: Scheduler, identity: Mapping[str, Any]) -> None:
        self.cache, self.cells = cache, cache.cells
        self.scheduler = scheduler
        self.identity = identity

    @property
    def size(self) -> int:
        """Cells: the most tokens that all sequences together may have."""
        return self.cells.size

    def clear(self) -> None:
        """Forget every token."""
        self.cells.clear()

    def seq_rm(self, seq_id: int, p0: int = -1, p1: int = -1) -> None:
        """Remove positions of a sequence, of all sequences for -1."""
        self.cells.seq_rm(seq_id, p0, p1)

    def seq_cp(self, source: int, target: int, p0: int = -1, p1: int = -1) -> None:
        """Let sequence `target` have the tokens of `source` too; nothing is copied."""
        self.cells.seq_cp(source, target, p0, p1)

    def seq_keep(self, seq_id: int) -> None:
        """Remove all sequences but one."""
        self.cells.seq_keep(seq_id)

    def seq_add(self, seq_id: int, p0: int, p1: int, delta: int) -> None:
        """Move positions of a sequence; what would come before position 0 is removed.

        Raises: GraphError if too few cells are free for tokens that other sequences share, which then get a copy.
        """
        self._copy_rows(self.cells.seq_add(seq_id, p0, p1, delta))

    def seq_div(self, seq_id: int, p0: int, p1: int, divisor: int) -> None:
        """Divide positions of a sequence, rounding down, as self-extend does.

        Raises: as `seq_add`.
        """
        self._copy_rows(self.cells.seq_div(seq_id, p0, p1, divisor))

    def seq_pos_min(self, seq_id: int) -> int:
        """The lowest position of a sequence, -1 if it has none."""
        return self.cells.seq_pos_min(seq_id)

    def seq_pos_max(self, seq_id: int) -> int:
        """The highest position of a sequence, -1 if it has none."""
        return self.cells.seq_pos_max(seq_id)

    def shift(self, keep: int = 0, seq_id: int = 0) -> int:
        """Make room: forget the older half of what stands after the first `keep` positions; the rest moves up.

        Returns: by how many positions.
        Raises: GraphError if less than two stand there.
        """
        count = self.seq_pos_max(seq_id) + 1
        discard = (count - keep) // 2
        if keep < 0 or discard < 1:
            raise GraphError(
                f"[context] cannot discard half of {count} positions after the first {keep}; keep fewer, or load the "
                f"model with a larger n_ctx"
            )
        self.seq_rm(seq_id, keep, keep + discard)
        self.seq_add(seq_id, keep + discard, -1, -discard)
        return discard

    def common_prefix(self, tokens: Sequence[int], seq_id: int = 0) -> int:
        """With how many of the tokens, the last left out, the sequence begins as a run of them would make it."""
        known = self.cells.history(seq_id)[: max(0, len(tokens) - 1)]
        same = known == np.asarray(tokens[: len(known)])
        return len(known) if same.all() else int(same.argmin())

    def state_save(self, seq_id: int = 0) -> bytes:
        """All that the cache holds of a sequence: its cells' rows in every layer, positions, shifts and tokens."""
        return saved_state.save(self.cache, self.scheduler.buffer_of, self.identity, seq_id)

    def state_load(self, data: bytes, seq_id: int = 0) -> None:
        """Put a saved sequence in place of what the cache holds of `seq_id`.

        Raises: FormatError if the data is damaged, or of another model or cache; GraphError if too few cells are free.
        """
        saved_state.load(data, self.cache, self.scheduler.buffer_of, self.identity, seq_id)

    def state_save_file(self, path: str | Path, seq_id: int = 0) -> None:
        """Save a sequence to a file."""
        saved_state.write_file(Path(path), self.state_save(seq_id))

    def state_load_file(self, path: str | Path, seq_id: int = 0) -> None:
        """Load a sequence from a file.

        Raises: as `state_load`; FormatError if the file cannot be read.
        """
        self.state_load(saved_state.read_file(Path(path)), seq_id)

    def _copy_rows(self, moves: Moves) -> None:
        source, target = moves
        for memory in self.cache.states if len(source) else ():
            buffer = self.scheduler.buffer_of(memory)
            write_rows(memory, buffer, target, read_rows(memory, buffer, source))
