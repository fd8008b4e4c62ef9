"""Where a row of undecided nodes between two memories is cut, so that the fewest bytes cross."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from graphrt.tensor import Tensor

MemoryOf = Callable[[Tensor], str | None]
Users = Mapping[Tensor, Sequence[Tensor]]


def users_of(nodes: Sequence[Tensor]) -> dict[Tensor, list[Tensor]]:
    """For each root, the nodes that read it or a view of it."""
    users: dict[Tensor, list[Tensor]] = {}
    for node in nodes:
        for root in {src.root for src in node.srcs if src is not None}:
            users.setdefault(root, []).append(node)
    return users


def best_cut(run: Sequence[Tensor], left: str, right: str, memory_of: MemoryOf, users: Users) -> int:
    """How many nodes of a run go to the left memory, the others to the right, so that the fewest bytes are copied.

    Args:
        run: undecided nodes in execution order, between a node on `left` and one on `right`.
        memory_of: of the tensors outside the run; None for those that are undecided too, which count as on the right.
        users: as from users_of.
    Returns: 0 to len(run); among equals the smallest.
    """
    side = dict.fromkeys(run, right)

    def place_of(tensor: Tensor) -> str:
        return side.get(tensor.root) or memory_of(tensor) or right

    roots = {src.root for node in run for src in node.srcs if src is not None} | {node.root for node in run}
    readers = {root: Counter(map(place_of, users.get(root, ()))) for root in roots}

    def crossing(root: Tensor) -> int:
        """Bytes that are copied of a value: once to each other memory that reads it."""
        home = place_of(root)
        return root.nbytes * sum(1 for memory, count in readers[root].items() if count and memory != home)

    cost = best = sum(crossing(root) for root in roots)
    cut = 0
    for count, node in enumerate(run, 1):
        touched = {src.root for src in node.srcs if src is not None} | {node.root}
        cost -= sum(crossing(root) for root in touched)
        for root in touched - {node}:
            readers[root][right] -= 1
            readers[root][left] += 1
        side[node] = left
        cost += sum(crossing(root) for root in touched)
        if cost < best:
            best, cut = cost, count
    return cut
