"""Launches of rope, alone or together with what else brings a layer's rows into the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphrt import ops
from graphrt.backends.cuda.elements import THREADS, WARP, blocks, kind
from graphrt.backends.cuda.launch import Address, Argument, Launch, Part, Whole
from graphrt.backends.cuda.registry import lowering
from graphrt.backends.cuda.rotation import spectrum
from graphrt.backends.cuda.units import Unit
from graphrt.ops.rope import Rotation
from graphrt.tensor import Tensor

TURNS, NORMS, STORES = 1, 2, 4  # What of rope.cu
MOST_JOBS, LONGEST_NORM = 3, 1024
MANY_TOKENS = 64  # from here on a thread turns several heads by the angle that it has worked out,
MOST_HEADS = 8  # so many
UNIT = Unit("rope", ["rope"], registers=80)


@dataclass(frozen=True)
class Job:
    """One of the jobs of a launch: what is done to rows, and where they go.

    Args:
        work: the rope or rms_norm; None where rows are stored as they are.
        store: the set_rows of its result, or of other rows, into a cache [C, ...]; None: the result goes to the node's
            own memory.
        turned: the end of a rope's rows, from the first element that turns on, and where that goes, in place of all.
    """

    work: Tensor | None
    store: Tensor | None = None
    turned: tuple[Part, Part] | None = None

    @property
    def nodes(self) -> list[Tensor]:
        return [node for node in (self.work, self.store) if node is not None]

    @property
    def turns(self) -> bool:
        return self.work is not None and self.work.op is ops.rope

    @property
    def norms(self) -> bool:
        return self.work is not None and not self.turns

    @property
    def rows(self) -> Tensor:
        """What its first node reads."""
        x = self.store.srcs[1] if self.work is None and self.store is not None else self.nodes[0].srcs[0]
        assert x is not None
        return x

    @property
    def source(self) -> Tensor:
        """The rows that something is done to."""
        return self.rows if self.turned is None else self.turned[0].view

    @property
    def heads(self) -> int:
        return self.source.shape[-2] if self.turns else 1

    @property
    def tokens(self) -> int:
        return self.source.size // (self.heads * self.source.shape[-1])

    def arguments(self) -> list[Argument]:
        y, x, before = self.nodes[-1], self.source, 0
        if self.store is not None:
            before = y.dtype.row_bytes(self.store.params["first"] or 0)
        what = TURNS * self.turns + NORMS * self.norms + STORES * (self.store is not None)
        first = self.nodes[0].params["first"] if self.turns and self.turned is None else 0
        source, target = (x, y) if self.turned is None else self.turned
        return [target, source, what, kind(y), kind(x), first, Whole(before)]

    def blocks_of_token(self, dims: int, heads_of_thread: int) -> int:
        """Blocks that a token's rows take: parts of a row, times groups of heads."""
        if self.norms:
            return 1
        if self.nodes[-1].dtype.is_quantized:
            return blocks(self.heads * self.source.shape[-1], THREADS)
        items = self.source.shape[-1] - (dims // 2 if self.turns else 0)
        across = min(THREADS, blocks(items, WARP) * WARP)
        return blocks(items, across) * blocks(self.heads, THREADS // across * heads_of_thread)


@lowering(ops.rope)
def _(node: Tensor) -> list[Launch]:
    return run_jobs([Job(node)])


def run_jobs(jobs: Sequence[Job]) -> list[Launch]:
    """The launch of up to MOST_JOBS jobs over the same tokens; ropes turn alike, stores go to the same cells."""
    rope = next((job.work for job in jobs if job.turns), None)
    norm = next((job.work for job in jobs if job.norms), None)
    ids = next((job.store.srcs[2] for job in jobs if job.store is not None), None)
    anything = jobs[0].rows  # in the place of tensors that no job reads
    tokens = jobs[0].tokens
    positions, factors = (rope.srcs[1], rope.srcs[2]) if rope is not None else (None, None)
    weight = norm.srcs[1] if norm is not None else None
    turning, dims = _turning(rope)
    heads_of_thread = 1 if tokens < MANY_TOKENS else MOST_HEADS
    arguments: list[Argument] = [
        *(positions or anything, Address(factors), 0 if factors is None else factors.strides[-1], *turning),
        *(heads_of_thread, ids or anything, 0 if ids is None else ids.dtype.nbytes),
        *(Address(weight), kind(weight), 0 if weight is None else weight.strides[-1]),
        float(norm.params["eps"]) if norm is not None else 0.0,
    ]
    for number in range(MOST_JOBS):
        arguments += jobs[min(number, len(jobs) - 1)].arguments()
    grid = [tokens, max(job.blocks_of_token(dims, heads_of_thread) for job in jobs), len(jobs)]
    return [Launch(UNIT.kernel("rope"), grid, [THREADS], arguments)]


def _turning(rope: Tensor | None) -> tuple[list[Argument], int]:
    """What a launch is told of how pairs turn, dims first; and dims."""
    rotation = Rotation() if rope is None else Rotation(**rope.params)
    dims = 0 if rope is None else rotation.width(rope.shape[-1])
    return [dims, rotation.mode == "normal", *spectrum(rotation, dims), float(rotation.magnitude)], dims
