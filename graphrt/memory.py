"""Memory: one arena for a graph's results, planned before the run; memory is handed on as soon as nothing reads it.

A result takes over its source's memory (in place) where the op allows it and nothing reads the source later. Views do
not stand in the way: lifetimes belong to the memory's root, and a root lives as long as any view of it is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from graphrt.backend import ALIGNMENT
from graphrt.graph import Graph
from graphrt.tensor import Tensor


@dataclass
class MemoryPlan:
    """Where every result lies in the arena.

    Args:
        offsets: byte offset of each root (a result that is not a view), input and workspace's node.
        nbytes: size of the arena: the compute buffer.
        inplace: results that took over another's memory, with that other.
    """

    offsets: dict[Tensor, int] = field(default_factory=dict)
    workspaces: dict[Tensor, int] = field(default_factory=dict)
    nbytes: int = 0
    inplace: dict[Tensor, Tensor] = field(default_factory=dict)

    def offset_of(self, tensor: Tensor) -> int:
        """Offset in the arena of a tensor's first element."""
        return self.offsets[tensor.root] + tensor.offset


def plan_memory(graph: Graph, workspace: Mapping[Tensor, int]) -> MemoryPlan:
    """Plan the arena of a graph whose nodes need the given bytes of workspace.

    Inputs and outputs are never handed on, so that inputs may be kept between runs and outputs read after one.
    """
    plan, arena = MemoryPlan(), _Arena()
    last_use = _last_uses(graph)
    forever = len(graph.nodes)
    owner: dict[Tensor, Tensor] = {}
    dies: dict[Tensor, int] = {}

    for leaf in graph.inputs.values():
        plan.offsets[leaf] = arena.take(leaf.nbytes)
    for i, node in enumerate(graph.nodes):
        if not node.is_view:
            donor = _donor(node, i, owner, dies)
            if donor is not None:
                owner[node] = owner[donor.root]
                plan.offsets[node] = plan.offsets[donor.root] + donor.offset
                plan.inplace[node] = donor
            else:
                owner[node] = node
                plan.offsets[node] = arena.take(node.nbytes)
            dies[owner[node]] = max(dies.get(owner[node], i), last_use.get(node, i))
        if workspace.get(node):
            plan.workspaces[node] = arena.take(workspace[node])
            arena.give(plan.workspaces[node], workspace[node])
        for root in [root for root, end in dies.items() if end <= i < forever]:
            arena.give(plan.offsets[root], root.nbytes)
            del dies[root]
    plan.nbytes = arena.size
    return plan


def _last_uses(graph: Graph) -> dict[Tensor, int]:
    """For each root, the last node that reads it or one of its views; outputs are read after the last node."""
    last: dict[Tensor, int] = {}
    for i, node in enumerate(graph.nodes):
        for src in node.srcs:
            if src is not None:
                last[src.root] = i
    last.update({output.root: len(graph.nodes) for output in graph.outputs})
    return last


def _donor(node: Tensor, i: int, owner: Mapping[Tensor, Tensor], dies: Mapping[Tensor, int]) -> Tensor | None:
    """A source whose memory the node may take over: same layout element for element, read for the last time here."""
    if node.op is None:
        return None
    for index in node.op.inplace:
        src = node.srcs[index]
        if src is None or src.root not in owner or dies.get(owner[src.root]) != i:
            continue
        same = (
            src.shape == node.shape
            and src.dtype.nbytes == node.dtype.nbytes
            and src.is_dense
            and not src.dtype.is_quantized
        )
        # Another source over the same memory may be read after its bytes were overwritten, unless it is the same view.
        others = [o for o in node.srcs if o is not None and o is not src and owner.get(o.root) is owner[src.root]]
        if (
            same
            and src.size
            and all(o.offset == src.offset and o.strides == src.strides and o.shape == src.shape for o in others)
        ):
            return src
    return None


class _Arena:
    """Best fit over free blocks, neighbours merged; grows at the end."""

    def __init__(self) -> None:
        self.size = 0
        self._free: list[tuple[int, int]] = []

    def take(self, nbytes: int) -> int:
        nbytes = _aligned(nbytes)
        fitting = [(length, start) for start, length in self._free if length >= nbytes]
        if fitting:
            length, start = min(fitting)
            self._free.remove((start, length))
            if length > nbytes:
                self._free.append((start + nbytes, length - nbytes))
            return start
        start = self.size
        for free_start, length in self._free:
            if free_start + length == self.size:
                self._free.remove((free_start, length))
                start = free_start
                break
        self.size = start + nbytes
        return start

    def give(self, start: int, nbytes: int) -> None:
        end = start + _aligned(nbytes)
        for free_start, length in list(self._free):
            if free_start + length == start or free_start == end:
                self._free.remove((free_start, length))
                start, end = min(start, free_start), max(end, free_start + length)
        if end > start:
            self._free.append((start, end - start))


def _aligned(nbytes: int) -> int:
    return max(ALIGNMENT, -(-nbytes // ALIGNMENT) * ALIGNMENT)
