"""Cells: which places of a KV cache are in use, by which tokens at which positions of which sequences.

C cells. A cell has a position and a set of sequences; a token may be written to any free cell, and attention finds what
it may see by the cells' positions and sequences: no order and no mask is kept. Changes of positions edit these numbers
only; attention turns a moved cell's key by its shift.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from graphrt import input
from graphrt.dtypes import Array
from graphrt.errors import GraphError
from graphrt.tensor import Tensor

EMPTY = -1
UNKNOWN = -1  # the token of a cell whose row is not written yet
MAX_SEQUENCES = 64
MAX_POSITION = 1 << 31
BITS = np.left_shift(1, np.arange(MAX_SEQUENCES), dtype=np.int64)  # the set that holds one sequence alone
BUCKET = 256  # cells that attention looks at come in multiples of this or more, so that a plan serves many tokens
FIELDS = {"positions": np.int32, "sequences": np.int64, "shifts": np.int32, "tokens": np.int32}
INPUTS = {"positions": "inp_cell_pos", "sequences": "inp_cell_seq", "shifts": "inp_cell_shift"}

Moves = tuple[Array, Array]  # cells whose contents must be copied, and where to


class Cells:
    """The table of a cache's cells, with llama.cpp's operations on sequences.

    In all of these, positions p0 <= p < p1 are meant; a negative p0 is the beginning and a negative p1 the end.

    Args:
        size: number of cells, the context length.
        memory: arrays [C] of FIELDS to keep the table in, such as a file's; what they hold is taken over.
    """

    def __init__(self, size: int, memory: Mapping[str, Array] | None = None) -> None:
        fields = memory or {name: np.zeros(size, dtype) for name, dtype in FIELDS.items()}
        self.positions = fields["positions"]  # [C] i32, EMPTY where the cell is free
        self.sequences = fields["sequences"]  # [C] i64, bit s: the cell belongs to sequence s
        self.shifts = fields["shifts"]  # [C] i32: positions that the cell has moved since it was written
        self.tokens = fields["tokens"]  # [C] i32
        self.last = [EMPTY] * MAX_SEQUENCES  # the highest position of each sequence, EMPTY where it has none
        self.used = 0
        self.is_shifted = False  # whether some cell in use has moved
        self._end = 0  # all cells from here on are free
        self._first_free = 0  # no cell before this one is free
        self._inputs: dict[tuple[str, int], Tensor] = {}
        if memory is None:
            self.positions[:], self.tokens[:] = EMPTY, UNKNOWN
        else:
            self._take_over()

    @property
    def size(self) -> int:
        return len(self.positions)

    @property
    def nbytes(self) -> int:
        """Bytes of the table."""
        return sum(array.nbytes for array in (self.positions, self.sequences, self.shifts, self.tokens))

    # -- room ------------------------------------------------------------------------------------------------------

    def visible_with(self, cells: Array) -> int:
        """The number of cells that attention must look at once `cells` are in use too, in whole buckets.

        A bucket is an eighth to a sixteenth of many cells: empty ones cost less than a plan for each 256 of them.
        """
        end = max(self._end, int(cells[-1]) + 1)
        bucket = max(BUCKET, 1 << end.bit_length() >> 4)
        return min(self.size, -(-end // bucket) * bucket)

    def require_free(self, count: int) -> None:
        """Raise GraphError unless `count` cells are free."""
        require_room(self.size, self.used, count)

    def find(self, count: int) -> Array:
        """Indices of `count` free cells, the lowest ones in rising order, i64.

        Raises: GraphError if fewer are free.
        """
        self.require_free(count)
        first = self._first_free
        if first + count <= self.size and (first >= self._end or self._are_free(slice(first, first + count))):
            return np.arange(first, first + count, dtype=np.int64)
        found: list[Array] = []
        # Piece by piece: there are mostly enough long before the end of a long context.
        start, width = first, max(4 * count, 1024)
        while count:
            piece = np.flatnonzero(self.positions[start : start + width] == EMPTY)[:count] + start
            found.append(piece)
            count, start, width = count - len(piece), start + width, 2 * width
        return np.concatenate(found)

    def occupy(self, cells: Array, positions: Array, sequences: Array) -> None:
        """Give the free cells that `find` found to tokens: their positions, and their one sequence each."""
        self.positions[cells] = positions
        self.sequences[cells] = BITS[sequences]
        for sequence, position in zip(sequences.tolist(), positions.tolist(), strict=True):
            if position > self.last[sequence]:
                self.last[sequence] = position
        self._taken(cells)

    def settle(self, cells: Array, tokens: Array) -> None:
        """Say which tokens' rows are written to cells by now."""
        self.tokens[cells] = tokens

    def replace(self, sequence: int, positions: Array, shifts: Array) -> Array:
        """Give a sequence other cells in place of those that it has; returns them, for their rows to be written.

        Raises: GraphError, with nothing changed, if too few are free.
        """
        alone = np.count_nonzero(self.sequences[: self._end] == BITS[_checked(sequence)])
        self.require_free(len(positions) - int(alone))
        self.seq_rm(sequence)
        taken = self.find(len(positions))
        if len(taken):
            self.occupy(taken, positions, np.full(len(taken), sequence))
            self.shifts[taken] = shifts
            self.is_shifted = self.is_shifted or bool(shifts.any())
        return taken

    def release(self, cells: Array) -> None:
        """Make cells free again."""
        if not len(cells):
            return
        let_go = self._union(cells)
        self.positions[cells] = EMPTY
        self.tokens[cells] = UNKNOWN
        self.sequences[cells] = self.shifts[cells] = 0
        self._count()
        self._find_last(let_go)

    def clear(self) -> None:
        """Free every cell."""
        self.seq_rm(-1)

    # -- sequences ---------------------------------------------------------------------------------------------------

    def seq_rm(self, sequence: int, p0: int = -1, p1: int = -1) -> None:
        """Take positions out of a sequence, -1: of every one; a cell that no sequence needs is freed."""
        inside = self._inside(sequence, p0, p1)
        affected = self._union(inside) if sequence == -1 else 1 << sequence
        self.sequences[inside] &= ~_bits(affected)
        self.release(inside[self.sequences[inside] == 0])
        self._find_last(affected)

    def seq_keep(self, sequence: int) -> None:
        """Remove all sequences but one."""
        taken, kept = self._inside(-1), 1 << _checked(sequence)
        affected = self._union(taken) & ~kept
        self.sequences[taken] &= _bits(kept)
        self.release(taken[self.sequences[taken] == 0])
        self._find_last(affected)

    def seq_cp(self, source: int, target: int, p0: int = -1, p1: int = -1) -> None:
        """Let sequence `target` share the cells of `source`; nothing is copied."""
        self.sequences[self._inside(_checked(source), p0, p1)] |= BITS[_checked(target)]
        self._find_last(1 << target)

    def seq_add(self, sequence: int, p0: int, p1: int, delta: int) -> Moves:
        """Move positions of a sequence by `delta`; a cell that would come before position 0 is let go.

        Returns: cells that other sequences share, and the free ones that took their place in this one: their contents
            must be copied.
        Raises: GraphError if such cells need more free ones than there are, or a position would be out of range.
        """
        inside = self._inside(_checked(sequence), p0, p1)
        return self._move(sequence, inside, self.positions[inside].astype(np.int64) + delta)

    def seq_div(self, sequence: int, p0: int, p1: int, divisor: int) -> Moves:
        """Divide positions of a sequence, rounding down: groups of tokens then share a position.

        Returns, raises: as `seq_add`; GraphError also if the divisor is not positive.
        """
        if divisor < 1:
            raise GraphError(f"[kv cache] seq_div: the divisor is {divisor}; it must be at least 1")
        inside = self._inside(_checked(sequence), p0, p1)
        return self._move(sequence, inside, self.positions[inside].astype(np.int64) // divisor)

    def seq_pos_min(self, sequence: int) -> int:
        """The lowest position of a sequence, -1 if it has none."""
        found = self.positions[self._inside(_checked(sequence))]
        return int(found.min()) if len(found) else EMPTY

    def seq_pos_max(self, sequence: int) -> int:
        """The highest position of a sequence, -1 if it has none."""
        return self.last[_checked(sequence)]

    def of(self, sequence: int) -> Array:
        """The cells of a sequence, in the order of positions."""
        found = self._inside(_checked(sequence))
        return found[np.argsort(self.positions[found], kind="stable")]

    def history(self, sequence: int) -> Array:
        """The tokens of a sequence from position 0 on, as far as they stand without a hole where they were written."""
        cells = self.of(sequence)
        whole = (self.positions[cells] == np.arange(len(cells))) & (self.shifts[cells] == 0)
        whole &= self.tokens[cells] != UNKNOWN
        return self.tokens[cells[: len(cells) if whole.all() else int(whole.argmin())]]

    # -- inputs of graphs ----------------------------------------------------------------------------------------------

    def input(self, field: str, count: int) -> Tensor:
        """The first `count` cells' positions, sequences or shifts as an input that lies in this table."""
        key = (field, count)
        if key not in self._inputs:
            self._inputs[key] = input(INPUTS[field], data=getattr(self, field)[:count])
        return self._inputs[key]

    # ------------------------------------------------------------------------------------------------------------------

    def _inside(self, sequence: int, p0: int = -1, p1: int = -1) -> Array:
        """The cells of a sequence, -1: of any, at positions p0 <= p < p1."""
        positions, wanted = self.positions[: self._end], -1 if sequence == -1 else 1 << _checked(sequence)
        found = (self.sequences[: self._end] & _bits(wanted) != 0) & (positions >= max(p0, 0))
        return np.flatnonzero(found if p1 < 0 else found & (positions < p1))

    def _union(self, cells: Array) -> int:
        """The sequences that any of the cells belongs to, as a bit set."""
        return int(np.bitwise_or.reduce(self.sequences[cells]))

    def _move(self, sequence: int, inside: Array, positions: Array) -> Moves:
        if len(positions) and positions.max() >= MAX_POSITION:
            raise GraphError(
                f"[kv cache] position {positions.max()} of sequence {sequence} would be out of range; "
                f"positions are 0 to {MAX_POSITION - 1}"
            )
        mine = BITS[sequence]
        moved = positions != self.positions[inside]
        inside, positions = inside[moved], positions[moved]
        is_shared = (self.sequences[inside] != mine) & (positions >= 0)
        moves = self._part(inside[is_shared], mine)
        inside[is_shared] = moves[1]
        gone = inside[positions < 0]
        inside, positions = inside[positions >= 0], positions[positions >= 0]
        self.shifts[inside] += (positions - self.positions[inside]).astype(np.int32)
        self.positions[inside] = positions
        self.sequences[gone] &= ~mine
        self.release(gone[self.sequences[gone] == 0])
        self._count()
        self._find_last(1 << sequence)
        return moves

    def _part(self, shared: Array, mine: np.int64) -> Moves:
        """Give one of the sequences that share cells a free cell for each of them."""
        if len(shared) > self.size - self.used:
            raise GraphError(
                f"[kv cache] {len(shared)} cells of the sequence are shared with others and must be copied before they "
                f"can move, but only {self.size - self.used} of {self.size} are free; remove a sequence (seq_rm), move "
                f"it before it is copied (seq_cp), or load the model with a larger n_ctx"
            )
        free = self.find(len(shared))
        for array in (self.positions, self.shifts, self.tokens):
            array[free] = array[shared]
        self.sequences[free] = mine
        self.sequences[shared] &= ~mine
        if len(free):
            self._taken(free)
        return shared, free

    def _taken(self, cells: Array) -> None:
        self.used += len(cells)
        last = int(cells[-1]) + 1
        self._end = max(self._end, last)
        # What find gives are the lowest free cells, so that none is left before the last of them.
        self._first_free = max(self._first_free, last)

    def _count(self) -> None:
        """Take stock of all cells after some were freed or moved."""
        taken = self.positions[: self._end] != EMPTY
        self.used = int(np.count_nonzero(taken))
        self._end = len(taken) - int(taken[::-1].argmax()) if self.used else 0
        self._first_free = self._end if self.used == self._end else int(taken.argmin())
        self.is_shifted = bool(self.shifts[: self._end].any())

    def _find_last(self, sequences: int) -> None:
        """Look up the last position of each of these sequences (a bit set) anew."""
        for sequence in range(MAX_SEQUENCES):
            if sequences >> sequence & 1:
                found = self.positions[: self._end][self.sequences[: self._end] & BITS[sequence] != 0]
                self.last[sequence] = int(found.max(initial=EMPTY))

    def _take_over(self) -> None:
        """Find out what the arrays hold; cells whose rows were not written to the end are freed."""
        self._end = self.size
        self._count()
        self.release(np.flatnonzero((self.positions != EMPTY) & (self.tokens == UNKNOWN)))
        self._find_last(-1)

    def _are_free(self, cells: slice) -> bool:
        return bool((self.positions[cells] == EMPTY).all())


def require_room(size: int, used: int, count: int) -> None:
    """Raise GraphError unless `count` more of `size` cells are free when `used` are in use."""
    if count > size - used:
        raise GraphError(
            f"[context] n_ctx is {size} tokens, {used} are in use, {count} more asked for; "
            f"load the model with n_ctx={used + count} or more, shorten the prompt, or clear the context"
        )


def _checked(sequence: int) -> int:
    if not 0 <= sequence < MAX_SEQUENCES:
        raise GraphError(f"[kv cache] sequence {sequence} is out of range; there are 0 to {MAX_SEQUENCES - 1}")
    return sequence


def _bits(sequences: int) -> np.int64:
    """A set of sequences as the cells keep it."""
    return np.uint64(sequences % (1 << 64)).astype(np.int64)
