"""Launches of attention to latents by expansion: ranges of cells become keys and values in the workspace."""

from __future__ import annotations

from dataclasses import dataclass

from graphrt import ops
from graphrt.backend import YES, Support
from graphrt.backends.cuda.attention import WIDEST
from graphrt.backends.cuda.attention_plan import WORD, Attention, Rows, Scratch, Shape, convert
from graphrt.backends.cuda.launch import Launch, Whole, Workspace
from graphrt.backends.cuda.registry import lowering
from graphrt.backends.cuda.units import Unit
from graphrt.tensor import Tensor

EXPANDED_BYTES = 64 << 20  # of keys and values in the workspace, but for the least range there is
TILE, TILES = 64, {"f32": 64, "f16": 128, "bf16": 128}  # cells and outputs of a block of threads

EXPAND = Unit("mla_expand", ["expand_rows"])


def takes(node: Tensor) -> Support:
    """Whether rows are narrow enough."""
    width = node.srcs[0].shape[2] + node.shape[2]
    if width > WIDEST:
        return Support(False, f"keys and values of {width} elements, kernels hold {WIDEST}", "split the heads")
    return YES


@dataclass
class Expansion:
    """The ranges of cells, one after the other.

    Args:
        latent, keys, values: sources in one float dtype.
    """

    node: Tensor
    attention: Attention
    latent: Rows
    keys: Rows
    values: Rows
    dtype: str

    def __post_init__(self) -> None:
        _, latent, _, values = self.node.srcs[:4]
        self.heads, self.value, self.rank = values.shape
        self.rope = latent.shape[2] - self.rank
        self.nope = self.node.srcs[0].shape[2] - self.rope
        self.pitches = [_up(self.nope + self.rope), _up(self.value)]
        self.size = 4 if self.dtype == "f32" else 2
        attention, cell_bytes = self.attention, self.heads * sum(self.pitches) * self.size
        self.cells_of_word = WORD * attention.shape.cells
        self.words = max(1, min(attention.words, EXPANDED_BYTES // (cell_bytes * self.cells_of_word)))
        self.places = [
            attention.scratch.take(self.words * self.cells_of_word * self.heads * pitch * self.size)
            for pitch in self.pitches
        ]

    def launches(self) -> list[Launch]:
        found = []
        k, v = (
            Rows(Workspace(place), self.heads * pitch * self.size, pitch * self.size)
            for place, pitch in zip(self.places, self.pitches, strict=True)
        )
        for first in range(0, self.attention.words, self.words):
            words = min(self.words, self.attention.words - first)
            found += [self._expand(first, words), self.attention.attend(k, v, first, words)]
        return found

    def _expand(self, first_word: int, words: int) -> Launch:
        attention, first_cell = self.attention, first_word * self.cells_of_word
        cells = max(1, min(words * self.cells_of_word, self.node.srcs[1].shape[0] - first_cell))
        outputs = TILES[self.dtype]
        grid = [-(-cells // TILE), -(-self.nope // outputs) + -(-self.value // outputs) + 1, self.heads]
        arguments = [
            *map(Workspace, self.places),
            *[
                self.latent.data,
                Whole(self.latent.cell),
                *self.keys.arguments,
                int(self.node.params["keys_transposed"]),
            ],
            *[*self.values.arguments, Workspace(attention.marks), attention.row_blocks, attention.words],
            *[attention.shape.cells, Whole(first_cell), Whole(cells)],
            *[self.rank, self.nope, self.rope, self.value, *self.pitches],
        ]
        kernel = "expand_rows" if self.dtype == "f32" else f"expand_tiles<{self.dtype}>"
        return Launch(EXPAND.kernel(kernel), grid, [256], arguments)


def _up(width: int) -> int:
    return -(-width // 8) * 8


def plan(node: Tensor) -> tuple[list[Launch], int]:
    """The launches of a node, and the bytes of its workspace."""
    q, latent, keys, values, q_pos, q_seq, cell_pos, cell_seq, rotation, factors = node.srcs
    params, scratch = node.params, Scratch()
    turns = None if params["rope"] is None else (params["rope"], rotation, factors)
    attention = Attention(
        node,
        q,
        [q_pos, q_seq, cell_pos, cell_seq],
        q.shape[1],
        Shape(8, 64),
        scratch,
        scale=params["scale"],
        ranged=True,
    )
    launches = [attention.mark()]
    sources = []
    for x, cells, turn in ((latent, cell_pos, turns), (keys, None, None), (values, None, None)):
        rows = Rows.of(x)
        if x.dtype.name != "f32" or turn:
            launch, rows = convert(x, "f32", scratch, cells, turn)
            launches.append(launch)
        sources.append(rows)
    launches += Expansion(node, attention, *sources, "f32").launches()
    return [*launches, *attention.combine()], scratch.nbytes


@lowering(ops.mla_attention, takes=takes, workspace=lambda node: plan(node)[1])
def _(node: Tensor) -> list[Launch]:
    return plan(node)[0]
