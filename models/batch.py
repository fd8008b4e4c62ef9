"""A batch: tokens to run, with where they stand and which of them need logits. T tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphrt.dtypes import Array
from graphrt.errors import GraphError
from graphrt.graph import Phase
from graphrt.models.cells import MAX_POSITION, MAX_SEQUENCES

KINDS = {"tokens": "iu", "pos": "iu", "seq_ids": "iu", "want_logits": "b"}
WORDS = {"iu": "whole numbers", "b": "True and False"}


@dataclass(frozen=True)
class Batch:
    """Tokens of any number of sequences: prompts, parts of prompts and single tokens, in one run.

    The tokens of a sequence stand in order, each one position after the one before it; the first goes on where the
    context has the sequence's last token. Sequences may be mixed at will.

    Args:
        tokens: [T] ids.
        pos: [T], of each token in its sequence.
        seq_ids: [T], the sequence of each, 0 to 63.
        want_logits: [T] bool, whose logits are asked for.
    Raises: GraphError if the rows differ in length, or a value is of the wrong kind, out of range or out of order.
    """

    tokens: Array
    pos: Array
    seq_ids: Array
    want_logits: Array

    def __post_init__(self) -> None:
        for name, kind in KINDS.items():
            object.__setattr__(self, name, _row(name, getattr(self, name), kind, len(self.tokens)))
        _require_range(extremes(self.pos), extremes(self.seq_ids))

    @classmethod
    def of(cls, tokens: Sequence[int], start: int = 0, *, sequence: int = 0, all_logits: bool = False) -> Batch:
        """Tokens that follow each other in one sequence from position `start`; logits for all, or for the last."""
        count = len(tokens)
        _require_range((start, start + max(0, count - 1)), (sequence,))
        wanted = np.zeros(count, bool)
        wanted[0 if all_logits else -1 :] = True
        pos, seq_ids = np.arange(start, start + count), np.array([sequence] * count, np.int64)
        batch = cls.__new__(cls)  # what is made here need not be checked for each token that is decoded
        batch.__dict__.update(tokens=_row("tokens", tokens, "iu", count), pos=pos, seq_ids=seq_ids, want_logits=wanted)
        return batch

    @property
    def phase(self) -> Phase:
        """Decoding if every token stands alone in its sequence, else a prompt: which override rules hold."""
        return "decode" if len(self) == 1 or len(np.unique(self.seq_ids)) == len(self) else "prompt"

    def require_order(self, last: Sequence[int]) -> None:
        """Raise GraphError if a token does not stand right after its sequence's last one.

        Args:
            last: the last position that the context has of each sequence, -1 where it has none: it may start anywhere.
        """
        reached: dict[int, int] = {}
        for sequence, position in zip(self.seq_ids.tolist(), self.pos.tolist(), strict=True):
            before = reached.get(sequence, last[sequence])
            if before >= 0 and position != before + 1:
                what = "leaves a hole in" if position > before else "is not new to"
                raise GraphError(
                    f"[batch] position {position} {what} sequence {sequence}, whose last one is {before}; give "
                    f"{before + 1}, or make room with seq_rm({sequence}, {position}, -1)"
                )
            reached[sequence] = position

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, part: slice) -> Batch:
        return Batch(self.tokens[part], self.pos[part], self.seq_ids[part], self.want_logits[part])


def _require_range(positions: Sequence[int], sequences: Sequence[int]) -> None:
    for what, values, bound in (("position", positions, MAX_POSITION), ("sequence", sequences, MAX_SEQUENCES)):
        for value in values:
            if not 0 <= value < bound:
                raise GraphError(f"[batch] {what} {value} is out of range; it must be 0 to {bound - 1}")


def _row(name: str, values: Sequence[int] | Array, kind: str, length: int) -> Array:
    """Values as an array [T] of the kind (NumPy's letters) that they must be."""
    row = np.asarray(values)
    if row.ndim != 1 or (row.size and row.dtype.kind not in kind):
        raise GraphError(f"[batch] {name} must be a row of {WORDS[kind]}, got {row.dtype} {list(row.shape)}")
    if len(row) != length:
        raise GraphError(f"[batch] {length} tokens, but {len(row)} {name}; give one for each token")
    return row


def extremes(values: Array) -> tuple[int, int]:
    """Least and greatest; of the one token of a decoding step, lists find them far sooner than NumPy's reductions."""
    listed = values.tolist() or [0]
    return min(listed), max(listed)
