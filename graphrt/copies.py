"""Copies: what a split reads from another memory, once for each tensor and memory.

What is copied is a value: a leaf or result, with everything that views of it span; or what a write left in a state. A
weight that an offloaded mul_mat_id reads is copied by expert: only the rows of those that the tokens chose.

Weights of offloaded nodes are large. Where a device has a copy queue they come through it, one split ahead: while the
split before theirs still runs.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field

from graphrt.buffer import ALIGNMENT, HOST
from graphrt.graph import Graph
from graphrt.placement import Placements
from graphrt.splits import SplitNodes, copied_by_expert, value_of
from graphrt.tensor import Tensor


@dataclass(eq=False)
class Copy:
    """Bytes [first, last) of a value's root, brought to a memory before a split runs.

    Args:
        value: the leaf, result or write whose bytes they are.
        memory: where to.
        split: number of the split before which they are copied; the number of splits for an output read at the end.
        experts: the tensor of chosen experts, where only those experts' part of a weight is copied.
        begins: number of the split with which it begins, in the device's copy queue: its own, or the one before; None
            where it is done in turn with the device's programs.
    """

    value: Tensor
    memory: str
    split: int
    first: int
    last: int
    experts: Tensor | None = None
    begins: int | None = None
    readers: list[Tensor] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes at most; of a weight by expert, those of all experts."""
        return self.last - self.first

    @property
    def is_queued(self) -> bool:
        """Whether a copy queue does it."""
        return self.begins is not None

    @property
    def beside(self) -> int | None:
        """The split before its own, if it goes on while that one runs."""
        return self.begins if self.begins != self.split else None

    def is_staged(self, home: str, asynchronous: Container[str]) -> bool:
        """Whether its bytes wait on the host for the device: all but weights of the host, which do not change."""
        if self.memory == HOST or (home not in asynchronous and self.memory not in asynchronous):
            return False
        return home != HOST or self.value.root.role not in ("weight", "constant")


@dataclass
class Copies:
    """All copies of a graph.

    Args:
        before: for each split's number, what is copied before it, in order.
        of: the copy that brings a value to a memory.
    """

    before: dict[int, list[Copy]] = field(default_factory=dict)
    of: dict[tuple[Tensor, str], Copy] = field(default_factory=dict)

    def find(self, tensor: Tensor, memory: str) -> Copy:
        """The copy that brings a tensor's value to a memory."""
        return self.of[value_of(tensor), memory]

    def all(self) -> Iterable[Copy]:
        """Every copy, in order."""
        return (copy for number in sorted(self.before) for copy in self.before[number])

    def beginning_with(self, number: int) -> list[Copy]:
        """The copies that need their room from a split on: its own that were not begun earlier, then those ahead."""
        due = [*self.before.get(number, ()), *self.before.get(number + 1, ())]
        return [copy for copy in due if (copy.split if copy.begins is None else copy.begins) == number]


def find_copies(graph: Graph, placements: Placements, splits: Sequence[SplitNodes]) -> Copies:
    """What must be copied where, given the placement and the splits; outputs are brought to the host at the end.

    A state that is an output stays where it lives, and is read when asked for: it may be large, and outlives the run.
    """
    copies = Copies()
    for number, part in enumerate(splits):
        memory = part.backend.memory
        for node in part.nodes:
            for src in node.srcs:
                if src is not None and src.size and placements.memory_of(src) != memory:
                    experts = copied_by_expert(node, placements) if src is node.srcs[0] else None
                    _need(copies, src, memory, number, experts).readers.append(node)
    for output in graph.outputs:
        if output.size and output.root.role != "state" and placements.memory_of(output) != HOST:
            _need(copies, output, HOST, len(splits), None)
    order = {leaf: number for number, leaf in enumerate(graph.inputs.values())}
    for due in copies.before.values():  # inputs first, as they lie in memory: neighbours go as one
        due.sort(key=lambda copy: order.get(copy.value, len(order)))
    _begin_early(copies, placements, splits)
    return copies


def _need(copies: Copies, src: Tensor, memory: str, split: int, experts: Tensor | None) -> Copy:
    value = value_of(src)
    first = src.offset // ALIGNMENT * ALIGNMENT  # so that all that is copied is aligned as it was
    copy = copies.of.get((value, memory))
    if copy is None:
        copy = Copy(value, memory, split, first, src.offset + src.extent, experts)
        copies.of[value, memory] = copy
        copies.before.setdefault(split, []).append(copy)
        return copy
    copy.first, copy.last = min(copy.first, first), max(copy.last, src.offset + src.extent)
    if experts is not copy.experts:
        copy.experts = None
    return copy


def _begin_early(copies: Copies, placements: Placements, splits: Sequence[SplitNodes]) -> None:
    """Give the weights of offloaded nodes to the copy queues, as soon as it is known what to copy; one split ahead."""
    number_of = {node: number for number, part in enumerate(splits) for node in part.nodes}
    for copy in copies.all():
        is_offload = any(placements.nodes[node].offloaded for node in copy.readers)
        if not is_offload or copy.value.root.role != "weight" or placements.memory_of(copy.value) != HOST:
            continue
        if splits[copy.split].backend.copy_queue is not None:
            known = 0 if copy.experts is None else number_of.get(value_of(copy.experts), -1) + 1
            copy.begins = max(known, copy.split - 1)
