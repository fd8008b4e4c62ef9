"""The scheduler: graph -> place -> split -> memory -> compile -> a plan that runs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from graphrt.backend import Backend, create
from graphrt.explain import describe
from graphrt.graph import Graph
from graphrt.memory import plan_memory
from graphrt.placement import parse_overrides, place
from graphrt.plan import Plan, SharedArena, lay_out
from graphrt.settings import Settings
from graphrt.splits import split
from graphrt.tensor import Tensor

DEFAULT_BACKENDS = ("cpu", "reference")


class Scheduler:
    """Gives the nodes of graphs to backends, and compiles plans.

    Args:
        backends: names or Backend objects, the preferred first; the reference backend is always there as the last.
        overrides: rules `regex=backend` over weights' names; the first match wins.
        settings: keywords of graphrt.Settings (threads=2, sched_debug=1 …), over the environment.
    """

    def __init__(
        self,
        backends: Sequence[str | Backend] = DEFAULT_BACKENDS,
        *,
        overrides: Iterable[str] | None = None,
        **settings: object,
    ) -> None:
        rules = None if overrides is None else tuple(overrides)
        self.settings = Settings.from_env(None, tensor_overrides=rules, **settings)
        self.backends = [create(item, self.settings) if isinstance(item, str) else item for item in backends]
        if all(backend.name != "reference" for backend in self.backends):
            self.backends.append(create("reference", self.settings))
        parse_overrides(self.settings.tensor_overrides, self.backends)
        self._plans: dict[tuple[object, ...], Plan] = {}

    def plan(self, graph: Graph | Tensor, arena: SharedArena | None = None) -> Plan:
        """Place, split, give memory and compile; a graph of the same structure gets the plan made before.

        Args:
            arena: memory shared with other plans, of which one runs at a time; memory of the plan's own where None.
        """
        graph = graph if isinstance(graph, Graph) else Graph(graph)
        key = (*graph.structure(), arena)
        if key not in self._plans:
            self._plans[key] = self._make(graph, arena)
        return self._plans[key]

    def clear(self) -> None:
        """Forget the plans made so far, and with them their memory."""
        self._plans.clear()

    def run(self, graph: Graph | Tensor, **inputs: object) -> object:
        """Plan and run once: the output's array, or a list of them where the graph has several."""
        plan = self.plan(graph)
        outputs = plan.run(inputs)  # type: ignore[arg-type]
        return outputs[0] if len(outputs) == 1 else outputs

    def _make(self, graph: Graph, arena: SharedArena | None) -> Plan:
        overrides = parse_overrides(self.settings.tensor_overrides, self.backends)
        placements = place(graph, self.backends, overrides)
        splits = split(graph, placements)
        workspace = {node: placement.backend.workspace(node) for node, placement in placements.items()}
        plan = Plan(graph, placements, splits, lay_out(graph, plan_memory(graph, workspace), arena))
        if self.settings.sched_debug:
            print(describe(plan, self.settings.sched_debug), file=sys.stderr)
        return plan
