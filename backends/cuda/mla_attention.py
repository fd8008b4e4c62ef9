"""Launches of attention to latents by expansion: ranges of cells become keys and values in the workspace."""

from __future__ import annotations

from dataclasses import dataclass

from graphrt import ops
from graphrt.backend import YES, Support
from graphrt.backends.cuda.attention import WIDEST
from graphrt.backends.cuda.attention_plan import WORD, Attention, Rows, Scratch, prepared
from graphrt.backends.cuda.attention_shapes import shape_for
from graphrt.backends.cuda.blocks import WEIGHTS
from graphrt.backends.cuda.launch import Launch, Whole, Workspace
from graphrt.backends.cuda.registry import lowering
from graphrt.backends.cuda.units import Unit
from graphrt.tensor import Tensor

EXPANDED_BYTES = 64 << 20  # of keys and values in the workspace, but for the least range there is
SIZES = {"f32": (64, 0), "f16": (128, 73728), "bf16": (128, 73728)}  # cells and outputs of a block; shared memory

EXPAND = Unit("mla_expand", ["expand_rows", "expand_tiles<f16>", "expand_tiles<bf16>"])


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
        self.words = min(self.attention.words, self.attention.words_at_once)
        self.cells_of_word = WORD * self.attention.shape.cells
        rows = self.words * self.cells_of_word * self.heads
        self.places = [self.attention.scratch.take(rows * pitch * self.size) for pitch in self.pitches]

    def launches(self) -> list[Launch]:
        found = []
        k, v = (
            Rows(Workspace(place), self.heads * pitch * self.size, pitch * self.size, WEIGHTS.index(self.dtype))
            for place, pitch in zip(self.places, self.pitches, strict=True)
        )
        for first in range(0, self.attention.words, self.words):
            words = min(self.words, self.attention.words - first)
            found += [self._expand(first, words), self.attention.attend(k, v, first, words)]
        return found

    def _expand(self, first_word: int, words: int) -> Launch:
        attention, first_cell = self.attention, first_word * self.cells_of_word
        cells = max(1, min(words * self.cells_of_word, self.node.srcs[1].shape[0] - first_cell))
        tile, shared = SIZES[self.dtype]
        grid = [-(-cells // tile), -(-self.nope // tile) + -(-self.value // tile) + 1, self.heads]
        arguments = [
            *map(Workspace, self.places),
            *[self.latent.data, Whole(self.latent.cell), *self.keys.arguments, self.node.params["keys_transposed"]],
            *[*self.values.arguments, Workspace(attention.marks), attention.row_blocks, attention.words],
            *[attention.shape.cells, Whole(first_cell), Whole(cells)],
            *[self.rank, self.nope, self.rope, self.value, *self.pitches],
        ]
        kernel = "expand_rows" if self.dtype == "f32" else f"expand_tiles<{self.dtype}>"
        return Launch(EXPAND.kernel(kernel), grid, [256], arguments, shared)


def _up(width: int) -> int:
    return -(-width // 8) * 8


def plan(node: Tensor) -> tuple[list[Launch], int]:
    """The launches of a node, and the bytes of its workspace."""
    q, latent, keys, values, q_pos, q_seq, cell_pos, cell_seq, rotation, factors = node.srcs
    params, scratch = node.params, Scratch()
    turns = None if params["rope"] is None else (params["rope"], rotation, factors)
    dtypes = {each.dtype.name for each in (latent, keys, values)}
    if values.shape[2] % 8:
        dtypes.add("f32")  # a piece of eight elements would hold some of both parts of a latent
    shape = shape_for(q.shape[0], 1, q.shape[2], values.shape[1], dtypes, joined=False)
    where, heads = [q_pos, q_seq, cell_pos, cell_seq], q.shape[1]
    word_bytes = WORD * shape.cells * heads * (q.shape[2] + values.shape[1]) * (4 if shape.dtype == "f32" else 2)
    at_once = max(1, EXPANDED_BYTES // word_bytes)
    attention = Attention(node, q, where, heads, shape, scratch, scale=params["scale"], words_at_once=at_once)
    launches, sources = attention.mark(), []
    for x, cells, turn in ((latent, cell_pos, turns), (keys, None, None), (values, None, None)):
        more, rows = prepared(x, shape.dtype, (), scratch, cells, turn)
        launches += more
        sources.append(rows)
    launches += Expansion(node, attention, *sources, shape.dtype).launches()
    return [*launches, *attention.combine()], scratch.nbytes


@lowering(ops.mla_attention, takes=takes, workspace=lambda node: plan(node)[1])
def _(node: Tensor) -> list[Launch]:
    return plan(node)[0]
