"""Launches of attention to cells of a cache: shared by attention to keys and values, and to those made of latents.

Chunks of cells are marked as worth a look or not for each block of rows; blocks of rows then go through theirs. Where
blocks are few, each takes a part of the cells, and a last kernel brings parts together.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from math import ceil, floor

from graphrt.backends.cuda.blocks import number_of
from graphrt.backends.cuda.launch import Address, Argument, Launch, Whole, Workspace
from graphrt.backends.cuda.units import Unit
from graphrt.ops.rope import Rotation, _pair_with_turns
from graphrt.tensor import Tensor

BLOCKS = 264  # that a large GPU runs at a time
WORD = 32  # chunks in a word of marks

PREPARE = Unit("attention_prepare", ["mark_chunks", *(f"convert_rows<{each}>" for each in ("f32", "f16", "bf16"))])
ROWS = Unit("attention_rows", ["attend_rows", "combine_parts"])


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
    """

    data: Argument
    cell: int
    head: int

    @classmethod
    def of(cls, x: Tensor) -> Rows:
        """A tensor [N, Hkv, D] as it lies."""
        return cls(Address(x), x.strides[0], x.strides[1])

    @property
    def arguments(self) -> list[Argument]:
        return [self.data, Whole(self.cell), Whole(self.head)]


@dataclass(frozen=True)
class Shape:
    """How a kernel cuts the work.

    Args:
        rows: of a block.
        cells: of a chunk.
    """

    rows: int
    cells: int


@dataclass
class Attention:
    """One attention over cells, which may come in several ranges, one after the other.

    Args:
        y: [T, H, Dv] f32, the result;  q: [T, H, Dk].
        where: q_pos, q_seq, cell_pos, cell_seq.
        kv_heads: Hkv.
        shape: of blocks.
        scratch: of the node.
        ranged: whether cells come in ranges.
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
    ranged: bool = False
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
        """Into which the cells of each block of rows are cut: of four chunks at least."""
        chunks = -(-self.where[2].shape[0] // self.shape.cells)
        return max(1, min(BLOCKS // (self.row_blocks * self.kv_heads), -(-chunks // 4)))

    @property
    def has_parts(self) -> bool:
        return self.ranged or self.parts > 1

    @property
    def sink_arguments(self) -> list[Argument]:
        sinks = self.sinks
        return [self.y, -1] if sinks is None else [sinks, sinks.dtype.gguf]

    def mark(self) -> Launch:
        """Find out which chunks are worth a look."""
        grid = [self.words, min(self.row_blocks, 16)]
        sizes = [self.row_blocks, self.shape.rows, self.group, self.shape.cells, self.window]
        return Launch(PREPARE.kernel("mark_chunks"), grid, [1024], [Workspace(self.marks), *self.where, *sizes])

    def arguments(self, k: Rows, v: Rows, first_word: int = 0, words: int | None = None) -> list[Argument]:
        """What kernels that attend to some cells are called with, k and v beginning at the first of these."""
        count = self.words if words is None else words
        return [
            *[self.y, self.q, self.q.dtype.gguf, *k.arguments, *v.arguments, *self.where, *self.sink_arguments],
            *[Workspace(self.marks), self.words, first_word, count],
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
        return [Launch(ROWS.kernel("combine_parts"), [tokens * heads], [128], arguments)]

    def attend(self, k: Rows, v: Rows, first_word: int = 0, words: int | None = None) -> Launch:
        """Attend in float32."""
        shared = 4 * self.shape.rows * (self.q.shape[2] + self.y.shape[2])
        grid = [self.row_blocks, self.kv_heads, self.parts]
        return Launch(ROWS.kernel("attend_rows"), grid, [128], self.arguments(k, v, first_word, words), shared)


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
    rotation, cells, factors = turns or (None, None, None)
    pairs, numbers = 0, [0, 0, 0, Whole(0), Whole(0), Whole(0), 0, 0, 1.0]
    if rotation is not None:
        pairs = rotation.width(width) // 2
        numbers = _turning(rotation, pairs)
    arguments: list[Argument] = [
        *[Workspace(offset), x, number_of(x.dtype), width, pitch],
        *[x if cell_pos is None else cell_pos, int(cell_pos is not None)],
        *[x if cells is None else cells, x if factors is None else factors, int(factors is not None)],
        *numbers,
    ]
    launch = Launch(PREPARE.kernel(f"convert_rows<{dtype}>"), [max(1, min(outer, 4096))], [128], arguments, 16 * pairs)
    rows = Rows(Workspace(offset), heads * pitch * size, pitch * size)
    return launch, rows


def _turning(rotation: Rotation, pairs: int) -> list[Argument]:
    """A rotation's numbers, as convert_rows takes them."""
    low = high = 0
    if rotation.ext_factor and pairs:
        dims, context = 2 * pairs, rotation.original_context
        low = max(0, floor(_pair_with_turns(rotation.beta_fast, dims, rotation.base, context)))
        high = min(dims - 1, ceil(_pair_with_turns(rotation.beta_slow, dims, rotation.base, context)))
    exact = (rotation.base, rotation.freq_scale, rotation.ext_factor)
    bits = [Whole(struct.unpack("q", struct.pack("d", number))[0]) for number in exact]
    neox = int(rotation.mode == "neox")
    return [pairs, rotation.first, neox, *bits, low, high, float(rotation.magnitude)]
