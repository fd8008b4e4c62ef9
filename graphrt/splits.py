"""Splits: runs of consecutive nodes on one backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from graphrt.backend import Backend
from graphrt.graph import Graph
from graphrt.placement import Placement
from graphrt.tensor import Tensor


@dataclass
class SplitNodes:
    """Nodes that one backend runs one after the other."""

    backend: Backend
    nodes: list[Tensor] = field(default_factory=list)


def split(graph: Graph, placements: Mapping[Tensor, Placement]) -> list[SplitNodes]:
    """Cut the graph where the backend changes; views belong to no split."""
    splits: list[SplitNodes] = []
    for node in graph.nodes:
        placement = placements.get(node)
        if placement is None:
            continue
        if not splits or splits[-1].backend is not placement.backend:
            splits.append(SplitNodes(placement.backend))
        splits[-1].nodes.append(node)
    return splits
