"""Fusion: the nodes of a split in the groups that its backend runs as one.

The backend proposes (Backend.fuse); here is what it needs to know for that, and what it must keep to.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from graphrt.backend import Group
from graphrt.copies import Copies
from graphrt.errors import KernelError
from graphrt.graph import Graph
from graphrt.splits import SplitNodes, value_of
from graphrt.tensor import Tensor


class Readers:
    """Who reads the results of a graph, in splits and with copies."""

    def __init__(self, graph: Graph, splits: Sequence[SplitNodes], copies: Copies) -> None:
        self._of: dict[Tensor, set[Tensor]] = {}
        for part in splits:
            for node in part.nodes:
                for src in node.srcs:
                    if src is not None:
                        self._of.setdefault(src.root, set()).add(node)
        self._kept = {output.root for output in graph.outputs}
        for copy in copies.all():
            self._kept.update(value.root for value in (copy.value, copy.experts) if value is not None)

    def are_within(self, result: Tensor, nodes: Collection[Tensor]) -> bool:
        """Whether nothing but these nodes reads a result or a view of it, so that it need not be written for others."""
        if result.root is not result or result in self._kept:
            return False
        return all(reader in nodes for reader in self._of.get(result, ()))

    def inner(self, group: Group) -> set[Tensor]:
        """The results of a group that nothing outside reads."""
        nodes = set(group.nodes)
        return {node for node in nodes if len(nodes) > 1 and self.are_within(node, nodes)}


def fuse(splits: Sequence[SplitNodes], readers: Readers) -> list[SplitNodes]:
    """The splits with the groups that their backends make of their nodes, which come in the groups' order.

    Raises: KernelError if a backend loses a node, or puts one before its sources.
    """
    return [_fused(part, readers) for part in splits]


def apart(splits: Sequence[SplitNodes]) -> list[SplitNodes]:
    """The splits with each node alone."""
    return [replace(part, groups=[part.backend.alone(node) for node in part.nodes]) for part in splits]


def _fused(part: SplitNodes, readers: Readers) -> SplitNodes:
    groups = list(part.backend.fuse(part.nodes, readers))
    nodes = [node for group in groups for node in group.nodes]
    waiting = set(part.nodes)
    if len(nodes) != len(part.nodes) or set(nodes) != waiting:
        raise KernelError(
            f"[fusion] {part.backend.name} must put each of {len(waiting)} nodes into one group, got {len(nodes)}"
        )
    for node in nodes:
        waiting.discard(node)
        early = [src for src in node.srcs if src is not None and value_of(src) in waiting]
        if early:
            raise KernelError(f"[fusion] {part.backend.name} would run {node.name} before its source {early[0].name}")
    return SplitNodes(part.backend, nodes, groups)
