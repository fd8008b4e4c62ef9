"""A schedule: a graph with a place for every node, its splits, copies and memory; everything but bytes and programs.

Making one reads no data and allocates nothing, so that models larger than the machine can be planned and explained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING

from graphrt.backend import Backend
from graphrt.copies import Copies, find_copies
from graphrt.dtypes import Array
from graphrt.explain import Explanation, explain
from graphrt.fitting import require_room
from graphrt.fusion import Readers, apart, fuse
from graphrt.graph import Graph
from graphrt.memory import MemoryPlan, plan_memory
from graphrt.moving import MovingWeights, moving_weights
from graphrt.overrides import Rule, parse
from graphrt.placement import Placements, place
from graphrt.settings import Settings
from graphrt.splits import SplitNodes, split
from graphrt.tensor import Tensor

if TYPE_CHECKING:
    from graphrt.plan import Plan
    from graphrt.profile import Profile

Compile = Callable[["Schedule"], "Plan"]


@dataclass(frozen=True)
class Schedule:
    """What the scheduler decided for a graph.

    Args:
        rules, node_rules: the override rules, with the number of tensors that each placed here.
        readers: who reads each result.
        moving: the weights that each run copies, though they could be kept where they are read.
        compile: allocates its memory and makes the plan.
        again: makes the schedule once more with an override before all others, and whether it fits or not.
    """

    graph: Graph
    backends: Sequence[Backend]
    placements: Placements
    splits: list[SplitNodes]
    copies: Copies
    memory: MemoryPlan
    readers: Readers = field(repr=False)
    moving: Sequence[MovingWeights]
    compile: Compile = field(repr=False)
    again: Callable[[str], Schedule] = field(repr=False)
    rules: Sequence[Rule] = ()
    node_rules: Sequence[Rule] = ()

    @property
    def compute_bytes(self) -> int:
        """Size of the compute buffers of all memories: every result, input, copy and workspace."""
        return self.memory.nbytes

    @cached_property
    def memory_by_node(self) -> MemoryPlan:
        """The memory of runs node by node, in which every result has a place; as in other runs if nothing is fused."""
        if not self.is_fused:
            return self.memory
        return plan_memory(self.graph, apart(self.splits), self.placements, self.copies, self.readers)

    @property
    def is_fused(self) -> bool:
        """Whether some nodes run as one."""
        return any(len(group.nodes) > 1 for part in self.splits for group in part.groups)

    @property
    def staging_bytes(self) -> int:
        """Host memory in which bytes wait for asynchronous devices; once for each run under way."""
        asynchronous = {backend.memory for backend in self.backends if backend.asynchronous}
        memory_of = self.placements.memory_of
        staged = (copy for copy in self.copies.all() if copy.is_staged(memory_of(copy.value), asynchronous))
        return sum(copy.nbytes for copy in staged)

    def resident(self, memory: str) -> list[Tensor]:
        """The weights and states that live in a memory; of leafs over the same bytes, the first."""
        there: dict[object, Tensor] = {}
        for leaf, home in self.placements.homes.items():
            if home.backend.memory == memory:
                there.setdefault(leaf.origin, leaf)
        return list(there.values())

    def explain(self) -> Explanation:
        """Everything that was decided, as data: splits, nodes with their reasons, copies, homes, memories, rules."""
        return explain(self)

    def profile(self, inputs: Mapping[str, Array] | None = None, *, repeats: int = 5) -> Profile:
        """Allocate, compile and run, and say where the time goes; a plan that there is already has its own `profile`.

        Args:
            inputs: by name; zeros for those that are not given.
            repeats: timed runs, of which the medians are taken.
        Raises: GraphError if an array does not fit its input; PlacementError if there is no room.
        """
        plan = self.compile(self)
        for name, array in (inputs or {}).items():
            plan.set_input(name, array)
        return plan.profile(repeats)


def make_schedule(
    graph: Graph,
    backends: Sequence[Backend],
    settings: Settings,
    *,
    compile: Compile,
    rules: Sequence[Rule] = (),
    node_rules: Sequence[Rule] = (),
    assigned: Mapping[Tensor, str] | None = None,
    must_fit: bool = True,
) -> Schedule:
    """Place, split, find copies, fuse, and plan memory; `compile` is kept for whoever wants to run the schedule.

    Raises: PlacementError if no backend supports a node, or, if it must fit, a memory's limit is exceeded.
    """
    placements = place(graph, backends, settings, rules=rules, node_rules=node_rules, assigned=assigned)
    splits = split(graph, placements)
    copies = find_copies(graph, placements, splits)
    readers = Readers(graph, splits, copies)
    splits = fuse(splits, readers) if settings.fuse else apart(splits)
    memory = plan_memory(graph, splits, placements, copies, readers)
    moving = moving_weights(placements, copies)

    def again(text: str) -> Schedule:
        first = parse([text], [backend.name for backend in backends])
        make = partial(make_schedule, graph, backends, settings, compile=compile, node_rules=node_rules)
        return make(rules=[*first, *rules], assigned=assigned, must_fit=False)

    schedule = Schedule(
        graph, backends, placements, splits, copies, memory, readers, moving, compile, again, rules, node_rules
    )
    if must_fit:
        require_room(schedule)
    return schedule
