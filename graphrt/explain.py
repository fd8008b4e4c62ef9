"""What a schedule decided, as data and in words.

schedule.explain() -> Explanation         objects, and .as_json()
describe(schedule, level) -> str          what GRAPH_SCHED_DEBUG prints
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from graphrt.moving import MovingWeights
from graphrt.placement import Placement
from graphrt.splits import SplitNodes, value_of
from graphrt.tensor import Tensor

if TYPE_CHECKING:
    from graphrt.schedule import Schedule


@dataclass(frozen=True)
class TensorNote:
    """A tensor as a reader sees it: what it is and where it lies.

    Args:
        name: never empty; a leaf without one is called after its role.
        role: weight, input, state, constant, or node.
        memory: where its bytes lie.
        backend: of the node that computes it, or of the weight's or state's home; of a view, that of its value; the
            memory's name for inputs and constants, which belong to no backend.
        view_of: name of the tensor whose bytes it shares, where it is a view.
    """

    name: str
    role: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    memory: str
    backend: str
    view_of: str | None = None


@dataclass(frozen=True)
class NodeNote:
    """A node: what it computes of what, where, why, and what was tried before."""

    result: TensorNote
    op: str
    sources: tuple[TensorNote, ...]
    backend: str
    reason: str
    rejected: tuple[str, ...]
    in_place_of: str | None


@dataclass(frozen=True)
class CopyNote:
    """A copy before a split; `by_expert` where only chosen experts' part is copied; `beside` which split it is done."""

    name: str
    nbytes: int
    source: str
    target: str
    by_expert: bool
    beside: int | None


@dataclass(frozen=True)
class FusionNote:
    """Nodes that run as one: the fusion's name, their names, and which results are not written."""

    fusion: str
    nodes: tuple[str, ...]
    unwritten: tuple[str, ...]


@dataclass(frozen=True)
class SplitNote:
    """A split: its backend, what is copied for it, its nodes, and which of them run as one."""

    number: int
    backend: str
    copies: tuple[CopyNote, ...]
    nodes: tuple[NodeNote, ...]
    fusions: tuple[FusionNote, ...] = ()


@dataclass(frozen=True)
class HomeNote:
    """A weight or state that was put somewhere: where and why."""

    tensor: TensorNote
    backend: str
    reason: str
    rejected: tuple[str, ...]


@dataclass(frozen=True)
class MemoryNote:
    """A memory: bytes of its arena, of the weights and states that live there, and what fills it at its fullest."""

    name: str
    compute_bytes: int
    resident_bytes: int
    limit: int | None
    peak: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Explanation:
    """Everything that a schedule decided."""

    nodes: int
    phase: str | None
    notes: tuple[str, ...]
    compute_bytes: int
    staging_bytes: int
    splits: tuple[SplitNote, ...]
    output_copies: tuple[CopyNote, ...]
    homes: tuple[HomeNote, ...]
    memories: tuple[MemoryNote, ...]
    rules: tuple[tuple[str, int], ...] = field(default=())
    moving: tuple[MovingWeights, ...] = field(default=())

    def as_json(self) -> str:
        """The same as JSON."""
        return json.dumps(asdict(self), indent=1)


def explain(schedule: Schedule) -> Explanation:
    """What a schedule decided, as data."""
    return Explainer(schedule).explain()


class Explainer:
    """Makes the notes of one schedule; each tensor's once."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.notes: dict[Tensor, TensorNote] = {}

    def explain(self) -> Explanation:
        """Everything that the schedule decided."""
        schedule = self.schedule
        splits = tuple(self._split(number, part) for number, part in enumerate(schedule.splits))
        homes = (self._home(leaf, placement) for leaf, placement in schedule.placements.homes.items())
        rules = tuple((rule.text, rule.matches) for rule in (*schedule.rules, *schedule.node_rules))
        return Explanation(
            nodes=len(schedule.graph.nodes),
            phase=schedule.graph.phase,
            notes=schedule.graph.notes,
            compute_bytes=schedule.compute_bytes,
            staging_bytes=schedule.staging_bytes,
            splits=splits,
            output_copies=self._copies(len(schedule.splits)),
            homes=tuple(homes),
            memories=tuple(self._memories()),
            rules=rules,
            moving=tuple(schedule.moving),
        )

    def tensor(self, tensor: Tensor) -> TensorNote:
        """The note of any tensor of the graph, views among them."""
        note = self.notes.get(tensor)
        if note is None:
            placements = self.schedule.placements
            memory = placements.memory_of(tensor)
            value = value_of(tensor)
            placed = placements.nodes.get(value) or placements.homes.get(value)
            note = self.notes[tensor] = TensorNote(
                name=self._name(tensor),
                role=tensor.role,
                dtype=tensor.dtype.name,
                shape=tensor.shape,
                nbytes=tensor.nbytes,
                memory=memory,
                backend=memory if placed is None else placed.backend.name,
                view_of=None if value is tensor else self._name(value),
            )
        return note

    def _name(self, tensor: Tensor) -> str:
        if tensor.name:
            return tensor.name
        return f"{tensor.role}_{self.schedule.graph.leafs.index(tensor)}"

    def _split(self, number: int, part: SplitNodes) -> SplitNote:
        fusions = tuple(
            FusionNote(
                fusion=group.fusion,
                nodes=tuple(node.name for node in group.nodes),
                unwritten=tuple(node.name for node in group.nodes if node in self.schedule.memory.inner),
            )
            for group in part.groups
            if len(group.nodes) > 1
        )
        nodes = tuple(self._node(node) for node in part.nodes)
        return SplitNote(number, part.backend.name, self._copies(number), nodes, fusions)

    def _node(self, node: Tensor) -> NodeNote:
        placement = self.schedule.placements.nodes[node]
        donor = self.schedule.memory.inplace.get(node)
        return NodeNote(
            result=self.tensor(node),
            op=node.op.name if node.op is not None else "",
            sources=tuple(self.tensor(src) for src in node.srcs if src is not None),
            backend=placement.backend.name,
            reason=placement.reason,
            rejected=placement.rejected,
            in_place_of=None if donor is None else self.tensor(donor).name,
        )

    def _copies(self, number: int) -> tuple[CopyNote, ...]:
        copies = self.schedule.copies.before.get(number, ())
        homes = [self.schedule.placements.memory_of(copy.value) for copy in copies]
        return tuple(
            CopyNote(self._name(each.value), each.nbytes, home, each.memory, each.experts is not None, each.beside)
            for each, home in zip(copies, homes, strict=True)
        )

    def _home(self, leaf: Tensor, placement: Placement) -> HomeNote:
        return HomeNote(self.tensor(leaf), placement.backend.name, placement.reason, placement.rejected)

    def _memories(self) -> Iterator[MemoryNote]:
        seen = set()
        for backend in self.schedule.backends:
            name = backend.memory
            if name not in seen:
                seen.add(name)
                resident = sum(leaf.nbytes for leaf in self.schedule.resident(name))
                peak = tuple(sorted(self.schedule.memory.peaks.get(name, ()), key=lambda item: -item[1]))
                yield MemoryNote(name, self.schedule.memory.sizes.get(name, 0), resident, backend.limit, peak)


# -- words -----------------------------------------------------------------------------------------------------------

DEFAULT_HOMES = ("its data is on the host", "states are on the host")


def describe(schedule: Schedule, level: int = 2) -> str:
    """A schedule as text: at level 1 its splits, at 2 every node, at 3 also fusions and why others were passed over."""
    return "\n".join(_lines(schedule.explain(), level))


def _lines(told: Explanation, level: int) -> Iterator[str]:
    size = f"{_count(told.nodes, 'node')}, {_count(len(told.splits), 'split')}"
    phase = f", phase {told.phase}" if told.phase else ""
    yield f"graph: {size}, compute buffers {told.compute_bytes:,} bytes{phase}"
    yield from told.notes
    for memory in told.memories:
        limit = "" if memory.limit is None else f" of {memory.limit:,}"
        held = f"{memory.compute_bytes:,} compute + {memory.resident_bytes:,} resident bytes"
        yield f"memory {memory.name}: {held}{limit}"
    if told.staging_bytes:
        yield f"staging for asynchronous devices: {told.staging_bytes:,} bytes on the host for each run under way"
    for text, matches in told.rules:
        yield f'rule "{text}": {_count(matches, "tensor")}' if matches else f'rule "{text}": matches nothing here'
    yield from (f"warning: {moving}" for moving in told.moving)
    for home in told.homes if level >= 2 else ():
        if home.reason not in DEFAULT_HOMES or home.rejected:
            yield f"home of {_words(home.tensor)}: {home.reason}"
            yield from (f"    not {said}" for said in home.rejected)
    for part in told.splits:
        yield from _split_lines(part, level)
    yield from (f"output {_copy(copy)}" for copy in told.output_copies)


def _split_lines(part: SplitNote, level: int) -> Iterator[str]:
    copied = f", {_count(len(part.copies), 'input')} copied" if part.copies else ""
    yield f"split #{part.number}: {part.backend}, {_count(len(part.nodes), 'node')}{copied}"
    yield from (f"  {_copy(copy)}" for copy in part.copies)
    fused = {fusion.nodes[0]: fusion for fusion in part.fusions if level >= 3}
    for node in part.nodes if level >= 2 else ():
        if node.result.name in fused:
            yield f"  {_fusion(fused[node.result.name])}"
        sources = ", ".join(_words(source) for source in node.sources)
        where = f", in place of {node.in_place_of}" if node.in_place_of else ""
        yield f"  {_words(node.result)} = {node.op}({sources}): {node.reason}{where}"
        if level >= 3:
            yield from (f"    not {said}" for said in node.rejected)


def _words(tensor: TensorNote) -> str:
    view = "" if tensor.view_of is None else f" view of {tensor.view_of}"
    return f"{tensor.name} {tensor.dtype}{list(tensor.shape)} {tensor.nbytes:,} B{view} @{tensor.backend}"


def _fusion(fusion: FusionNote) -> str:
    unwritten = f"; not written: {', '.join(fusion.unwritten)}" if fusion.unwritten else ""
    return f"as one ({fusion.fusion}): {', '.join(fusion.nodes)}{unwritten}"


def _copy(copy: CopyNote) -> str:
    amount = f"at most {copy.nbytes:,} B, the chosen experts" if copy.by_expert else f"{copy.nbytes:,} B"
    when = "" if copy.beside is None else f", beside split #{copy.beside}"
    return f"copy {copy.name} {copy.source} -> {copy.target}: {amount}{when}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
