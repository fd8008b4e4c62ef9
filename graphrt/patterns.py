"""How a backend finds nodes to run as one: patterns that look at the nodes still to run, for Backend.fuse.

A pattern sees the first of them and what comes soon after, and answers with a group that begins with the first, or
None. The members may stand apart: what is between them runs later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from graphrt.backend import Group
from graphrt.fusion import Readers
from graphrt.splits import value_of
from graphrt.tensor import Tensor

AHEAD = 40  # nodes that a pattern looks at: a layer or so


@dataclass(frozen=True)
class Fused(Group):
    """Nodes that run as one; `lower` makes what the backend's program runs for them."""

    lower: Callable[[], list[Any]] = list


class Coming:
    """The nodes of a split that are still to run."""

    def __init__(self, nodes: Sequence[Tensor], readers: Readers) -> None:
        self.readers = readers
        self._nodes = list(nodes)
        self._waiting = set(nodes)

    def __bool__(self) -> bool:
        return bool(self._nodes)

    @property
    def first(self) -> Tensor:
        return self._nodes[0]

    def after_first(self) -> Iterator[Tensor]:
        """Those soon after the first."""
        return iter(self._nodes[1:AHEAD])

    def is_ready(self, node: Tensor, members: Sequence[Tensor]) -> bool:
        """Whether all that a node reads is done, or done by these members of its group."""
        values = (value_of(src) for src in node.srcs if src is not None)
        return all(value not in self._waiting or value in members for value in values)

    def reader(self, result: Tensor, op: str, members: Sequence[Tensor], source: int = 0) -> Tensor | None:
        """The node of that op that reads a result as its source of that number, if it could run with these members."""
        for node in self.after_first():
            if node.op is not None and node.op.name == op and node.srcs[source] is result and node not in members:
                return node if self.is_ready(node, members) else None
        return None

    def take(self, group: Group) -> Group:
        """Take a group's nodes away."""
        self._waiting.difference_update(group.nodes)
        self._nodes = [node for node in self._nodes[:AHEAD] if node in self._waiting] + self._nodes[AHEAD:]
        return group


Pattern = Callable[[Coming], Fused | None]


def in_groups(
    nodes: Sequence[Tensor], readers: Readers, patterns: Sequence[Pattern], alone: Callable[[Tensor], Group]
) -> list[Group]:
    """The nodes in the groups that run as one, or alone; of several patterns that fit the first is taken."""
    coming, groups = Coming(nodes, readers), list[Group]()
    while coming:
        found = (pattern(coming) for pattern in patterns)
        group = next((group for group in found if group is not None), None)
        groups.append(coming.take(group or alone(coming.first)))
    return groups
