"""Launches of attention to cells of a cache: shared by attention to keys and values, and to those made of latents.

Chunks of cells are marked as worth a look or not for each block of rows; blocks of rows then go through theirs. Where
blocks are few, each takes a part of the cells, and a last kernel brings parts together.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from graphrt import dtypes
from graphrt.backends.cuda.attention_shapes import ROWS, Shape
from graphrt.backends.cuda.blocks import WEIGHTS, number_of
from graphrt.backends.cuda.launch import Address, Argument, Launch, Whole, Workspace
from graphrt.backends.cuda.rotation import spectrum
from graphrt.backends.cuda.units import Unit
from graphrt.ops.rope import Rotation
from graphrt.tensor import Tensor

WORD = 32  # chunks in a word of marks
PART_CELLS = 128  # of a part, at least: what parts leave behind has to be read again
THREADS, MOST_BLOCKS = 128, 4096  # of convert_rows

PREPARE = Unit("attention_prepare", ["mark_chunks", "convert_rows"])


@dataclass
class Scratch:
    """A node's workspace, handed out from the start."""

    nbytes: int = 0

    def take(self, nbytes: int) -> int:
        """The offset of so many bytes."""
        offset = self.nbytes
        self.nbytes += -(-nbytes // 256) * 256
        return offset


@dataclass(frozen=True)
class Rows:
    """Keys or values as kernels see them.

    Args:
        data: pointer to the first cell's first head.
        cell, head: bytes from one to the next.
        number: of the dtype, in blocks.cuh.
    """

    data: Argument
    cell: int
    head: int
    number: int

    @classmethod
    def of(cls, x: Tensor) -> Rows:
        """A tensor [N, Hkv, D] as it lies."""
        return cls(Address(x), x.strides[0], x.strides[1], number_of(x.dtype))

    @property
    def arguments(self) -> list[Argument]:
        return [self.data, Whole(self.cell), Whole(self.head)]


@dataclass
class Attention:
    """One attention over cells, which may come in several ranges, one after the other.

    Args:
        y: [T, H, Dv] f32, the result;  q: [T, H, Dk].
        where: q_pos, q_seq, cell_pos, cell_seq.
        kv_heads: Hkv.
        shape: of blocks.
        scratch: of the node.
        words_at_once: words of marks whose cells are there at a time; 0: all cells are there.
    """

    y: Tensor
    q: Tensor
    where: list[Tensor]
    kv_heads: int
    shape: Shape
    scratch: Scratch
    sinks: Tensor | None = None
    scale: float = 1.0
    softcap: float = 0.0
    window: int = 0
    words_at_once: int = 0
    marks: int = field(init=False)
    partial: int = field(init=False)

    def __post_init__(self) -> None:
        self.marks = self.scratch.take(4 * 2 * self.row_blocks * self.words)
        tokens, heads, width = self.y.shape
        self.partial = self.scratch.take(4 * self.parts * tokens * heads * (width + 2)) if self.has_parts else 0

    @property
    def group(self) -> int:
        return self.q.shape[1] // self.kv_heads

    @property
    def row_blocks(self) -> int:
        return -(-self.q.shape[0] * self.group // self.shape.rows)

    @property
    def words(self) -> int:
        return max(1, -(-self.where[2].shape[0] // (WORD * self.shape.cells)))

    @property
    def parts(self) -> int:
        """Into which the cells of each block of rows are cut."""
        most = -(-self.where[2].shape[0] // PART_CELLS)
        return max(1, min(self.shape.at_once // (self.row_blocks * self.kv_heads), most))

    @property
    def has_parts(self) -> bool:
        return 0 < self.words_at_once < self.words or self.parts > 1

    @property
    def sink_arguments(self) -> list[Argument]:
        sinks = self.sinks
        return [self.y, -1] if sinks is None else [sinks, sinks.dtype.gguf]

    @property
    def has_marks(self) -> bool:
        """Whether it pays to look for chunks: one token, or one block of rows, is likely to see them all."""
        return self.words_at_once > 0 or self.window > 0 or (self.row_blocks > 1 and self.q.shape[0] > 1)

    def mark(self) -> list[Launch]:
        """Find out which chunks are worth a look."""
        if not self.has_marks:
            return []
        grid = [self.words, min(-(-self.row_blocks // 32), 16)]
        sizes = [self.row_blocks, self.shape.rows, self.group, self.shape.cells, self.window]
        return [Launch(PREPARE.kernel("mark_chunks"), grid, [1024], [Workspace(self.marks), *self.where, *sizes])]

    def _arguments(self, k: Rows, v: Rows, first_word: int, words: int | None) -> list[Argument]:
        """What both kernels are called with."""
        count = self.words if words is None else words
        return [
            *[self.y, self.q, self.q.dtype.gguf, *k.arguments, *v.arguments, *self.where, *self.sink_arguments],
            Workspace(self.marks) if self.has_marks else Address(None),
            *[self.words, first_word, count],
            Workspace(self.partial) if self.has_parts else Address(None),
            int(first_word > 0),
            *[float(self.scale), float(self.softcap), self.window],
        ]

    def combine(self) -> list[Launch]:
        """Bring parts together, where there are any."""
        if not self.has_parts:
            return []
        tokens, heads, _ = self.y.shape
        arguments = [self.y, Workspace(self.partial), self.parts, *self.sink_arguments]
        grid = [tokens * heads, -(-self.y.shape[2] // 64)]
        return [Launch(ROWS.kernel("combine_parts"), grid, [128], arguments, 4 * self.parts)]

    def attend(self, k: Rows, v: Rows, first_word: int = 0, words: int | None = None) -> Launch:
        """Attend to the cells of some words of marks, whose first k and v begin with."""
        shape, arguments = self.shape, self._arguments(k, v, first_word, words)
        grid = [self.row_blocks, self.kv_heads, self.parts]
        if shape.dtype != "f32":
            arguments += [k.number, v.number]
        return Launch(shape.unit.kernel(shape.expression), grid, [shape.threads], arguments, shape.shared)


def convert(
    x: Tensor,
    dtype: str,
    scratch: Scratch,
    cell_pos: Tensor | None = None,
    turns: tuple[Rotation, Tensor, Tensor | None] | None = None,
) -> tuple[Launch, Rows]:
    """Rows of x [A, B, D] in another dtype, dense, turned where there is a rotation, its turns and its factors."""
    outer, heads, width = x.shape
    pitch = -(-width // 8) * 8
    size = 4 if dtype == "f32" else 2
    offset = scratch.take(outer * heads * pitch * size)
    rotation, cells, factors = turns or (Rotation(), x, None)
    pairs = rotation.width(width) // 2 if turns else 0
    arguments: list[Argument] = [
        *[Workspace(offset), dtypes.get(dtype).gguf, x, number_of(x.dtype), pitch],
        *[x if cell_pos is None else cell_pos, int(cell_pos is not None)],
        *[cells, x if factors is None else factors, int(factors is not None)],
        *[float(rotation.magnitude), rotation.first, pairs, rotation.mode == "normal"],
        *spectrum(rotation, 2 * pairs),
    ]
    parts = 1 if pairs else max(1, min(16, heads * pitch // 8 // THREADS // 4))
    grid = [max(1, min(outer, MOST_BLOCKS)), parts]
    launch = Launch(PREPARE.kernel("convert_rows"), grid, [THREADS], arguments, 16 * pairs)
    return launch, Rows(Workspace(offset), heads * pitch * size, pitch * size, WEIGHTS.index(dtype))


def prepared(
    x: Tensor,
    dtype: str,
    native: tuple[str, ...],
    scratch: Scratch,
    cell_pos: Tensor | None = None,
    turns: tuple[Rotation, Tensor, Tensor | None] | None = None,
) -> tuple[list[Launch], Rows]:
    """Rows of x [A, B, D] for kernels of a dtype: as they lie, or else converted.

    Args:
        native: dtypes that kernels of 16-bit dtypes read besides their own.
    """
    if turns is None and dtype == x.dtype.name == "f32":
        return [], Rows.of(x)
    if turns is None and dtype != "f32" and x.dtype.name in (dtype, *native) and x.shape[2] % 8 == 0:
        return [], Rows.of(x)
    launch, rows = convert(x, dtype, scratch, cell_pos, turns)
    return [launch], rows
