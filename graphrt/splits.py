"""Splits: the order of execution, cut where the backend changes; chosen so that it changes seldom."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from graphrt.backend import Backend, Group
from graphrt.graph import Graph
from graphrt.placement import Placements
from graphrt.tensor import Tensor


@dataclass
class SplitNodes:
    """Nodes that one backend runs one after the other, and the groups that it makes of them (see fusion.py)."""

    backend: Backend
    nodes: list[Tensor] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)


EXPERT_OP = "mul_mat_id"


def split(graph: Graph, placements: Placements) -> list[SplitNodes]:
    """Cut the graph into splits; views belong to none.

    Of the nodes whose sources are done, those of the present backend run first, in the graph's order; so nodes that do
    not depend on another backend do not wait behind a change. On one backend the order is the graph's. A split is also
    cut where the experts have been chosen whose weights are copied from another memory: only then is it known which;
    and before an offloaded node that reads what comes of another: its weight is copied while that one runs, and the
    weights of a long chain need not all have room at once.
    """
    splits: list[SplitNodes] = []
    within: set[Tensor] = set()
    after_offloaded: set[Tensor] = set()
    for node in _order(graph, placements):
        placed, chosen = placements.nodes[node], copied_by_expert(node, placements)
        values = {value_of(src) for src in node.srcs if src is not None}
        waits = placed.offloaded and not after_offloaded.isdisjoint(values)
        is_cut = waits or (chosen is not None and value_of(chosen) in within)
        if not splits or splits[-1].backend is not placed.backend or is_cut:
            splits.append(SplitNodes(placed.backend))
            within.clear()
            after_offloaded.clear()
        splits[-1].nodes.append(node)
        within.add(node)
        if placed.offloaded or not after_offloaded.isdisjoint(values):
            after_offloaded.add(node)
    return splits


def shown_in(graph: Graph, splits: Sequence[SplitNodes]) -> dict[Tensor, int]:
    """The split beside which each node is shown: where it runs; a view's is its value's, or else its first reader's."""
    shown = {node: number for number, part in enumerate(splits) for node in part.nodes}
    for node in graph.nodes:
        if node not in shown and value_of(node) in shown:
            shown[node] = shown[value_of(node)]
    for node in reversed(graph.nodes):
        for src in node.srcs:
            if src is not None and not src.is_leaf and src not in shown and node in shown:
                shown[src] = shown[node]
    return shown


def value_of(tensor: Tensor) -> Tensor:
    """The value that a tensor is a view of: its root, or the last write that it came through."""
    while tensor.op is not None and tensor.op.kind == "view" and tensor.srcs[0] is not None:
        tensor = tensor.srcs[0]
    return tensor


def copied_by_expert(node: Tensor, placements: Placements) -> Tensor | None:
    """The tensor of chosen experts, if the node is a mul_mat_id whose whole weight lies in another memory."""
    if node.op is None or node.op.name != EXPERT_OP:
        return None
    weight, chosen = node.srcs[0], node.srcs[2]
    whole = weight is not None and weight.root is weight and weight.role == "weight" and weight.is_dense
    return chosen if whole and weight and placements.memory_of(weight) != placements.memory_of(node) else None


def _order(graph: Graph, placements: Placements) -> Iterator[Tensor]:
    """The nodes that compute, sources first, with few changes of backend."""
    placed = placements.nodes
    nodes = [node for node in graph.nodes if node in placed]
    if len({id(placement.backend) for placement in placed.values()}) <= 1:
        yield from nodes
        return
    position = {node: i for i, node in enumerate(nodes)}
    waits, users = _dependencies(graph, position)
    ready: dict[Backend, list[int]] = {}
    for i, node in enumerate(nodes):
        if not waits[i]:
            heapq.heappush(ready.setdefault(placed[node].backend, []), i)
    backend: Backend | None = None
    for _ in nodes:
        if backend is None or not ready.get(backend):
            backend = min((other for other, heap in ready.items() if heap), key=lambda other: ready[other][0])
        i = heapq.heappop(ready[backend])
        yield nodes[i]
        for user in users[i]:
            waits[user] -= 1
            if not waits[user]:
                heapq.heappush(ready.setdefault(placed[nodes[user]].backend, []), user)


def _dependencies(graph: Graph, position: Mapping[Tensor, int]) -> tuple[list[int], list[list[int]]]:
    """For each node by position: how many others it waits for, and which wait for it; views are looked through."""
    waits, users = [0] * len(position), [[] for _ in position]  # type: tuple[list[int], list[list[int]]]
    computed: dict[Tensor, int] = {}
    for node in graph.nodes:
        if node in position:
            mine = position[node]
            needed = {computed[src] for src in node.srcs if src is not None and src in computed}
            waits[mine] = len(needed)
            for i in needed:
                users[i].append(mine)
            computed[node] = mine
        elif node.srcs[0] is not None and node.srcs[0] in computed:
            computed[node] = computed[node.srcs[0]]
    return waits, users
