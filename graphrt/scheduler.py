"""The scheduler: graph -> placement -> splits -> copies -> memory -> programs; a plan that runs."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial

from graphrt.backend import Backend, Group, Progress, create
from graphrt.buffer import HOST, Buffer, HostBuffer
from graphrt.errors import MemoryFullError
from graphrt.explain import describe
from graphrt.fitting import no_room
from graphrt.graph import Graph
from graphrt.memory import MemoryPlan
from graphrt.overrides import PHASES, Rule, parse
from graphrt.plan import Plan
from graphrt.residents import Residents
from graphrt.schedule import Schedule, make_schedule
from graphrt.settings import Settings
from graphrt.tensor import Tensor

DEFAULT_BACKENDS = ("cpu", "reference")


Allocate = Callable[[int], Buffer]


class SharedArena:
    """Memory for several plans of which one runs at a time, as a model's plans for prompts and for single tokens.

    A plan's inputs and outputs are then good only until another plan over the same arena runs.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Buffer] = {}

    def at_least(self, memory: str, nbytes: int, allocate: Allocate) -> Buffer:
        """Bytes of a memory, so many or more; plans made before keep theirs."""
        if not self.holds(memory, nbytes):
            self._buffers[memory] = allocate(nbytes)
        return self._buffers[memory]

    def holds(self, memory: str, nbytes: int) -> bool:
        """Whether so many bytes of a memory were taken."""
        return memory in self._buffers and self._buffers[memory].nbytes >= nbytes

    def by_node(self, memory: str, nbytes: int, allocate: Allocate) -> Buffer:
        """Bytes for the same plans' runs node by node: the same ones where they are enough, else others."""
        return (self if self.holds(memory, nbytes) else self._larger).at_least(memory, nbytes, allocate)

    @cached_property
    def _larger(self) -> SharedArena:
        return SharedArena()


class Scheduler:
    """Gives the nodes of graphs to backends, and compiles plans.

    Args:
        backends: names or Backend objects, the preferred first; the reference backend is always there as the last.
        overrides: rules `regex=backend` that place weights and states by name; the first match wins.
        node_overrides: rules that place nodes, by their own name or their op's.
        settings: keywords of graphrt.Settings (threads=2, sched_debug=1 …), over the environment.
    Raises: SettingsError for a rule, setting or backend that cannot be.
    """

    def __init__(
        self,
        backends: Sequence[str | Backend] = DEFAULT_BACKENDS,
        *,
        overrides: Iterable[str] | None = None,
        node_overrides: Iterable[str] = (),
        **settings: object,
    ) -> None:
        rules = None if overrides is None else tuple(overrides)
        self.settings = Settings.from_env(None, tensor_overrides=rules, **settings)
        self.backends = [create(item, self.settings) if isinstance(item, str) else item for item in backends]
        if all(backend.name != "reference" for backend in self.backends):
            self.backends.append(create("reference", self.settings))
        names = [backend.name for backend in self.backends]
        self._rules = parse(self.settings.tensor_overrides, names)
        self._node_rules = parse(node_overrides, names)
        self._residents = Residents()
        self._plans: dict[tuple[object, ...], Plan] = {}
        self._phases: set[str | None] = set()
        self._moving: dict[str, None] = {}

    def schedule(self, graph: Graph | Tensor, *, assigned: Mapping[Tensor, str] | None = None) -> Schedule:
        """Decide where everything runs and lies, without touching data or allocating memory.

        Args:
            assigned: your own word on nodes, weights and states, by backend name; it comes before every rule.
        Raises: PlacementError if no backend supports a node, or a memory's limit is exceeded.
        """
        schedule = self._decide(graph, assigned)
        self._moving.update((str(moving), None) for moving in schedule.moving)
        self._phases.add(schedule.graph.phase)
        placed = (*schedule.rules, *schedule.node_rules)
        for rule, used in zip((*self._rules, *self._node_rules), placed, strict=True):
            rule.matches += used.matches
        return schedule

    def reserve(self, graph: Graph | Tensor, arena: SharedArena) -> None:
        """Make room in an arena for a plan of a graph, which is not made yet; `unmatched` and `moving` pass it over.

        Raises: PlacementError if a memory has no room.
        """
        schedule = self._decide(graph)
        with _naming_what_fits(schedule, self._residents, arena):
            _allocate(schedule.memory, schedule.backends, arena.at_least)

    def home(self, name: str) -> Backend:
        """The backend that the rules give a state of that name to; where they say nothing, the first on the host."""
        rule = next((rule for rule in self._rules if rule.holds(name, None)), None)
        if rule is None:
            return next(backend for backend in self.backends if backend.memory == HOST)
        return next(backend for backend in self.backends if backend.name == rule.backend)

    def stays_on_host(self, name: str) -> bool:
        """Whether the rules leave a weight of that name in the host's memory in every phase."""
        found = [next((rule for rule in self._rules if rule.holds(name, phase)), None) for phase in PHASES]
        hosts = {backend.name for backend in self.backends if backend.memory == HOST}
        return all(rule is None or rule.backend in hosts for rule in found)

    def unmatched(self) -> list[str]:
        """The override rules that placed nothing in any graph so far; one for a phase needs a graph of that phase."""
        rules = (*self._rules, *self._node_rules)
        return [rule.text for rule in rules if not rule.matches and (rule.phase is None or rule.phase in self._phases)]

    def moving(self) -> list[str]:
        """The weights that runs of any graph so far copy each time, in words, with the override that would save it."""
        return list(self._moving)

    def add_overrides(self, rules: Iterable[str]) -> None:
        """Add rules after those that there are; for schedules to come."""
        self._rules += parse(rules, [backend.name for backend in self.backends])

    def fork(self) -> Scheduler:
        """A scheduler with plans of its own, over the same backends, rules and resident weights."""
        other = copy.copy(self)
        other._plans = {}
        return other

    def plan(
        self, graph: Graph | Tensor, arena: SharedArena | None = None, *, assigned: Mapping[Tensor, str] | None = None
    ) -> Plan:
        """Schedule, allocate and compile; a graph of the same structure gets the plan made before.

        Args:
            arena: memory shared with other plans, of which one runs at a time; memory of the plan's own where None.
            assigned: as in `schedule`.
        """
        graph = graph if isinstance(graph, Graph) else Graph(graph)
        key = _key(graph, arena, assigned)
        if key not in self._plans:
            schedule = self.schedule(graph, assigned=assigned)
            self._plans[key] = _make_plan(schedule, self._residents, self.settings, arena)
        return self._plans[key]

    def plans(self, graphs: Iterable[Graph], arena: SharedArena | None = None) -> list[Plan]:
        """The plans of several graphs, as `plan` makes each; what backends must compile is compiled at once."""
        keys: list[tuple[object, ...]] = []
        schedules: dict[tuple[object, ...], Schedule] = {}
        for graph in graphs:
            keys.append(_key(graph, arena))
            if keys[-1] not in self._plans and keys[-1] not in schedules:
                schedules[keys[-1]] = self.schedule(graph)
        _warm_up(schedules.values())
        for key, schedule in schedules.items():
            self._plans[key] = _make_plan(schedule, self._residents, self.settings, arena)
        return [self._plans[key] for key in keys]

    def warm_up(self, graphs: Iterable[Graph], progress: Progress | None = None) -> int:
        """Let the backends make ready what plans of these graphs will need, such as compiled kernels.

        Args:
            progress: as in `Backend.warm_up`.
        Returns: how many kernels, or whatever the backends make, the graphs need.
        Raises: as `plan`; but no memory is allocated.
        """
        return _warm_up([self._decide(graph) for graph in graphs], progress)

    def buffer_of(self, state: Tensor) -> Buffer:
        """Where a state's bytes are now: on a device once a plan has put it there, else in its own data on the host."""
        return self._residents.find(state)

    def clear(self) -> None:
        """Forget the plans made so far, and with them their memory."""
        self._plans.clear()

    def run(self, graph: Graph | Tensor, **inputs: object) -> object:
        """Plan and run once: the output's array, or a list of them where the graph has several."""
        plan = self.plan(graph)
        outputs = plan.run(inputs)  # type: ignore[arg-type]
        return outputs[0] if len(outputs) == 1 else outputs

    def _decide(self, graph: Graph | Tensor, assigned: Mapping[Tensor, str] | None = None) -> Schedule:
        return make_schedule(
            graph if isinstance(graph, Graph) else Graph(graph),
            self.backends,
            self.settings,
            compile=partial(_make_plan, residents=self._residents, settings=self.settings),
            rules=_fresh(self._rules),
            node_rules=_fresh(self._node_rules),
            assigned=assigned,
        )


def _key(graph: Graph, arena: SharedArena | None, assigned: Mapping[Tensor, str] | None = None) -> tuple[object, ...]:
    """What plans are kept by."""
    return (*graph.structure(), arena, tuple((node.name, name) for node, name in (assigned or {}).items()))


def _warm_up(schedules: Iterable[Schedule], progress: Progress | None = None) -> int:
    groups: dict[Backend, list[Group]] = {}
    for schedule in schedules:
        for part in schedule.splits:
            groups.setdefault(part.backend, []).extend(part.groups)
    return sum(backend.warm_up(parts, progress) for backend, parts in groups.items())


def _make_plan(schedule: Schedule, residents: Residents, settings: Settings, arena: SharedArena | None = None) -> Plan:
    """Allocate memory for a schedule, and compile it."""
    arena = arena or SharedArena()

    def allocate(memory: MemoryPlan) -> dict[str, Buffer]:
        return _allocate(memory, schedule.backends, arena.at_least if memory is schedule.memory else arena.by_node)

    if settings.sched_debug:
        print(describe(schedule, settings.sched_debug), file=sys.stderr)
    checks = {"check_numerics": settings.check_numerics, "sched_debug": settings.sched_debug}
    with _naming_what_fits(schedule, residents, arena):
        return Plan(schedule, allocate, residents, **checks)


def _allocate(
    memory: MemoryPlan, backends: Sequence[Backend], take: Callable[[str, int, Allocate], Buffer]
) -> dict[str, Buffer]:
    """The arena of each memory; the host's is such as devices copy to and from fastest."""
    makers: dict[str, Allocate] = {backend.memory: backend.allocate for backend in reversed(backends)}
    device = next((backend for backend in backends if backend.asynchronous), None)
    if device is not None:
        makers[HOST] = partial(HostBuffer.allocate, raw=device.staging)
    return {name: take(name, memory.sizes.get(name, 0), make) for name, make in makers.items()}


@contextmanager
def _naming_what_fits(schedule: Schedule, residents: Residents, arena: SharedArena) -> Iterator[None]:
    """Let an allocation that fails say what the schedule takes, and with which override it would fit."""
    try:
        yield
    except MemoryFullError as error:

        def has_already(memory: str) -> int:
            needed = schedule.memory.sizes.get(memory, 0)
            return residents.held_bytes(schedule.resident(memory), memory) + needed * arena.holds(memory, needed)

        raise no_room(schedule, error, has_already) from error


def _fresh(rules: Sequence[Rule]) -> list[Rule]:
    """The same rules with nothing counted yet."""
    return [replace(rule, matches=0) for rule in rules]
