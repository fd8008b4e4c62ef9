"""Memory: one arena for each memory, planned before the run; bytes are handed on as soon as nothing reads them.

A result takes over its source's memory (in place) where the op allows it and nothing reads the source later. Views do
not stand in the way: lifetimes belong to the memory's root, and a root lives as long as any view of it is read. Copies
from other memories, inputs without an array of their own, outputs and workspaces lie in the same arenas.

Nodes that run as one (a group) do so at one moment: what they read lives until the group is done, their results and its
workspace are taken before, and results that nothing else reads are given no memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from graphrt.backend import Group
from graphrt.buffer import ALIGNMENT, HOST
from graphrt.copies import Copies, Copy
from graphrt.fusion import Readers
from graphrt.graph import Graph
from graphrt.placement import Placements
from graphrt.splits import SplitNodes, value_of
from graphrt.tensor import Tensor

Held = Tensor | Copy
Span = tuple[str, int, int]


@dataclass
class MemoryPlan:
    """Where everything lies.

    Args:
        offsets: byte offset of each result that is no view, of each input and of each copy, in its memory's arena.
        workspaces: offset of a group's scratch memory, by its first node.
        sizes: bytes of each arena, by memory.
        inplace: results that took over another's memory, with that other.
        peaks: by memory, what was alive when the arena was fullest, with its bytes.
        freed: for the last node of each group, the spans (memory, offset, bytes) that nothing reads after it.
        inner: results that only their own group reads, which have no memory.
    """

    offsets: dict[Held, int] = field(default_factory=dict)
    workspaces: dict[Tensor, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    inplace: dict[Tensor, Tensor] = field(default_factory=dict)
    peaks: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    freed: dict[Tensor, list[Span]] = field(default_factory=dict)
    inner: set[Tensor] = field(default_factory=set)

    @property
    def nbytes(self) -> int:
        """All arenas together: the compute buffers."""
        return sum(self.sizes.values())


def plan_memory(
    graph: Graph,
    splits: Sequence[SplitNodes],
    placements: Placements,
    copies: Copies,
    readers: Readers,
) -> MemoryPlan:
    """Plan the arenas of a graph that runs in these splits, group by group, with these copies.

    Inputs and outputs are never handed on, so that inputs may be kept between runs and outputs read after one.
    """
    return _Planner(graph, splits, placements, copies, readers).plan()


class _Planner:
    def __init__(
        self,
        graph: Graph,
        splits: Sequence[SplitNodes],
        placements: Placements,
        copies: Copies,
        readers: Readers,
    ) -> None:
        self.graph, self.splits, self.copies, self.readers = graph, splits, copies, readers
        self.memory_of = placements.memory_of
        self.result = MemoryPlan()
        self.arenas: dict[str, _Arena] = {HOST: _Arena()}
        self.owner: dict[Held, Held] = {}
        self.dies: dict[Held, int] = {}
        self.ending: dict[int, list[Held]] = {}
        self.last_use = self._last_uses()

    def plan(self) -> MemoryPlan:
        forever = sum(len(part.groups) for part in self.splits) + 1
        for leaf in self.graph.inputs.values():
            if not leaf.has_data:  # one that has lies in that array
                self._take(HOST, leaf, leaf.nbytes, forever)
        time = 0
        for number, part in enumerate(self.splits):
            for copy in self.copies.beginning_with(number):
                self._take(copy.memory, copy, copy.nbytes, self.last_use[copy])
            for group in part.groups:
                self._place_group(group, time, part.backend.memory)
                self._free_after(group.nodes[-1], time)
                time += 1
        for copy in self.copies.before.get(len(self.splits), ()):
            self._take(HOST, copy, copy.nbytes, forever)
        for memory, arena in self.arenas.items():
            self.result.sizes[memory] = arena.size
            self.result.peaks[memory] = arena.fullest
        return self.result

    def _last_uses(self) -> dict[Held, int]:
        """When each root and copy is read for the last time, counted in groups; outputs after the last one."""
        last: dict[Held, int] = {}
        position: dict[Tensor, int] = {}
        time, starts = 0, []
        for part in self.splits:
            starts.append(time)
            for group in part.groups:
                for node in group.nodes:
                    position[node] = time
                    last.update((src.root, time) for src in node.srcs if src is not None)
                time += 1
        # A copy that a split on the host needs may serve as an output besides.
        read_at_the_end = {self.copies.of.get((value_of(output), HOST)) for output in self.graph.outputs}
        for copy in self.copies.all():
            start = starts[copy.split] if copy.split < len(starts) else time + 1
            for source in (copy.value, copy.experts):
                if source is not None:
                    last[source.root] = max(last.get(source.root, 0), start)
            last[copy] = time + 1 if copy in read_at_the_end else max(position[node] for node in copy.readers)
        last.update({output.root: time + 1 for output in self.graph.outputs})
        return last

    def _place_group(self, group: Group, time: int, memory: str) -> None:
        inner = self.readers.inner(group)
        self.result.inner |= inner
        for node in group.nodes:
            if node.root is node and node not in inner:
                self._place_result(node, group, time, memory)
        if group.workspace:
            first, arena = group.nodes[0], self.arenas.setdefault(memory, _Arena())
            self.result.workspaces[first] = arena.take(f"workspace of {first.name}", group.workspace)
            arena.give(self.result.workspaces[first])

    def _place_result(self, node: Tensor, group: Group, time: int, memory: str) -> None:
        end = max(time, self.last_use.get(node, time))
        donor = self._donor(node, group, time, memory)
        if donor is None:
            self._take(memory, node, node.nbytes, end)
        else:
            owner = self.owner[donor.root]
            self.owner[node] = owner
            self.result.offsets[node] = self.result.offsets[donor.root] + donor.offset
            self.result.inplace[node] = donor
            self._live_until(owner, end)

    def _donor(self, node: Tensor, group: Group, time: int, memory: str) -> Tensor | None:
        """A source whose memory the node may take over: the same layout, and read here for the last time."""
        if node.op is None or group.is_apart:
            return None
        own = [node.srcs[index] for index in node.op.inplace]
        given = [source for result, source in group.inplace if result is node]
        for src in [*own, *given]:
            owner = self.owner.get(src.root) if src is not None else None
            if src is None or owner is None or self.dies.get(owner) != time or self.memory_of(src) != memory:
                continue
            same = src.shape == node.shape and src.dtype.nbytes == node.dtype.nbytes and not src.dtype.is_quantized
            # What else reads the same memory may do so after it was overwritten, unless it is the same view.
            readers = group.nodes if src in given else (node,)
            alike = all(
                reader in readers and (o.offset, o.strides, o.shape) == (src.offset, src.strides, src.shape)
                for reader in group.nodes
                for o in reader.srcs
                if o is not None and self.owner.get(o.root) is owner
            )
            # Kernels rely on where results begin.
            is_aligned = (self.result.offsets[src.root] + src.offset) % ALIGNMENT == 0
            fits = src in own or not self._fits_before(src, memory)
            if same and src.is_dense and src.size and alike and is_aligned and fits:
                return src
        return None

    def _fits_before(self, src: Tensor, memory: str) -> bool:
        """Whether there is free memory of that size before a tensor, which leaves fewer holes when it is taken."""
        place = self.arenas[memory].free_place(src.nbytes)
        return place is not None and place < self.result.offsets[src.root] + src.offset

    def _take(self, memory: str, item: Held, nbytes: int, end: int) -> None:
        name = item.value.name if isinstance(item, Copy) else item.name
        self.result.offsets[item] = self.arenas.setdefault(memory, _Arena()).take(name, nbytes)
        self.owner[item] = item
        self._live_until(item, end)

    def _live_until(self, owner: Held, end: int) -> None:
        if end > self.dies.get(owner, -1):
            self.dies[owner] = end
            self.ending.setdefault(end, []).append(owner)

    def _free_after(self, node: Tensor, time: int) -> None:
        for item in self.ending.pop(time, ()):
            if self.dies[item] == time:
                memory = item.memory if isinstance(item, Copy) else self.memory_of(item)
                span = self.arenas[memory].give(self.result.offsets[item])
                self.result.freed.setdefault(node, []).append((memory, *span))


class _Arena:
    """First fit over free blocks, neighbours merged; grows at the end."""

    def __init__(self) -> None:
        self.size = 0
        self.fullest: list[tuple[str, int]] = []
        self._free: dict[int, int] = {}
        self._ends: dict[int, int] = {}
        self._taken: dict[int, tuple[str, int]] = {}

    def free_place(self, nbytes: int) -> int | None:
        """Where the first free memory of that size begins; None if there is none before the end."""
        return min((start for start, length in self._free.items() if length >= nbytes), default=None)

    def take(self, name: str, nbytes: int) -> int:
        nbytes = max(ALIGNMENT, -(-nbytes // ALIGNMENT) * ALIGNMENT)
        place = self.free_place(nbytes)
        if place is not None:
            length = self._free[place]
            self._remove(place)
            self._add(place + nbytes, length - nbytes)
            self._taken[place] = (name, nbytes)
            return place
        start = self._ends.get(self.size, self.size)
        if start < self.size:
            self._remove(start)
        self.size = start + nbytes
        self._taken[start] = (name, nbytes)
        self.fullest = list(self._taken.values())
        return start

    def give(self, start: int) -> tuple[int, int]:
        """Free what begins at `start`; returns its start and length."""
        length = self._taken.pop(start)[1]
        first, end = start, start + length
        if first in self._ends:
            first = self._ends[first]
            self._remove(first)
        if end in self._free:
            after = self._free[end]
            self._remove(end)
            end += after
        self._add(first, end - first)
        return start, length

    def _add(self, start: int, length: int) -> None:
        if length:
            self._free[start] = length
            self._ends[start + length] = start

    def _remove(self, start: int) -> None:
        del self._ends[start + self._free.pop(start)]
