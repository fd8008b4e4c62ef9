"""A graph: the nodes that some outputs need, in an order that depends on the data alone, checked for hazards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np

from graphrt.dtypes import Array
from graphrt.errors import GraphError
from graphrt.tensor import Tensor

Phase = Literal["prompt", "decode"]


class Graph:
    """Everything that the outputs need, in execution order.

    Args:
        outputs: a tensor, or several; an output's bytes survive the run.
        phase: "prompt" or "decode", for override rules that hold in one of them only.
        notes: lines on how whoever built the graph came to this form; GRAPH_SCHED_DEBUG=1 prints them.
    Raises: GraphError if two leafs share a name, or a read and a write of the same memory have no order.
    """

    def __init__(
        self, outputs: Tensor | Iterable[Tensor], *, phase: Phase | None = None, notes: Iterable[str] = ()
    ) -> None:
        self.phase = phase
        self.notes = tuple(notes)
        self.outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
        if not self.outputs:
            raise GraphError("[graph] needs at least one output")
        tensors = list(_in_order(self.outputs))
        self.nodes = [tensor for tensor in tensors if not tensor.is_leaf]
        self.leafs = [tensor for tensor in tensors if tensor.is_leaf]
        self._name_nodes()
        self._check_leafs()
        self._check_hazards()

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The leafs whose bytes are given at each run, by name."""
        return {leaf.name: leaf for leaf in self.leafs if leaf.role == "input"}

    def structure(self) -> tuple[object, ...]:
        """A hashable key: equal for graphs that compute the same thing over the same leafs' memory."""
        number = {tensor: i for i, tensor in enumerate([*self.leafs, *self.nodes])}
        leafs = tuple(
            (
                leaf.name,
                leaf.role,
                leaf.dtype.name,
                leaf.shape,
                leaf.strides,
                None if leaf.role == "input" and not leaf.has_data else id(leaf),
            )
            for leaf in self.leafs
        )
        nodes = tuple(
            (
                node.op.name if node.op else "",
                tuple(-1 if src is None else number[src] for src in node.srcs),
                tuple(node.params.items()),
                node.dtype.name,
                node.shape,
                node.strides,
                node.offset,
            )
            for node in self.nodes
        )
        return leafs, nodes, tuple(number[output] for output in self.outputs), self.phase

    def __repr__(self) -> str:
        outputs = ", ".join(output.name for output in self.outputs)
        return f"Graph({len(self.nodes)} nodes, {len(self.leafs)} leafs -> {outputs})"

    def _name_nodes(self) -> None:
        taken = {tensor.name for tensor in [*self.nodes, *self.leafs] if tensor.name}
        count: dict[str, int] = {}
        for node in self.nodes:
            if node.name or node.op is None:
                continue
            while True:
                number = count.get(node.op.name, 0)
                count[node.op.name] = number + 1
                name = f"{node.op.name}_{number}"
                if name not in taken:
                    break
            node.name = name
            taken.add(name)

    def _check_leafs(self) -> None:
        seen: dict[str, Tensor] = {}
        for leaf in self.leafs:
            if leaf.role == "input" and not leaf.name:
                raise GraphError(f"[graph] the input {leaf!r} needs a name, under which its bytes are given")
            if leaf.name and seen.setdefault(leaf.name, leaf) is not leaf:
                raise GraphError(
                    f'[graph] two leafs are called "{leaf.name}": {seen[leaf.name]!r} and {leaf!r}; rename one'
                )

    def _check_hazards(self) -> None:
        """A node that touches memory which another writes must come before or after it by the data, not by luck."""
        writes = [node for node in self.nodes if node.op is not None and node.op.kind == "write"]
        if not writes:
            return
        for write in writes:
            if write.root.role in ("weight", "constant", "input"):
                raise GraphError(
                    f"[graph] {write.name} writes into {write.root!r}, which is read-only; "
                    f"write into a state (graphrt.state), or into a copy (ops.cont)"
                )
            for src in _sources(write)[1:]:
                if src.root is write.root and _overlap(src, write) and _share_bytes(src, write):
                    raise GraphError(
                        f"[graph] {write.name} reads what it writes: {src!r} and {write!r} lie over each other; "
                        f"let it read a copy (ops.cont)"
                    )
        for first, conflicts in _conflicts(self.nodes, writes).items():
            followers = _followers(self.nodes, first, max(conflicts))
            for second, (node, write) in conflicts.items():
                if self.nodes[second] not in followers:
                    raise GraphError(
                        f"[graph] {node.name} reads {write.root.name} and {write.name} writes it, in no order; "
                        f"let the later of the two take the other's result as its source"
                    )


def _sources(node: Tensor) -> list[Tensor]:
    return [src for src in node.srcs if src is not None]


def _in_order(outputs: tuple[Tensor, ...]) -> Iterator[Tensor]:
    """Sources before their users, depth first, sources from left to right; without recursion, for deep graphs."""
    done: set[Tensor] = set()
    stack = [(output, False) for output in reversed(outputs)]
    while stack:
        tensor, expanded = stack.pop()
        if tensor in done:
            continue
        if expanded:
            done.add(tensor)
            yield tensor
        else:
            stack.append((tensor, True))
            stack.extend((src, False) for src in reversed(_sources(tensor)) if src not in done)


def _conflicts(nodes: list[Tensor], writes: list[Tensor]) -> dict[int, dict[int, tuple[Tensor, Tensor]]]:
    """Writes with the other nodes that touch the same bytes: by the position of the first of the two, then the other's.

    So each first node is looked at once, and what follows it only as far as its last conflict, mostly in one layer: the
    whole check takes time in proportion to the graph.
    """
    position = {node: i for i, node in enumerate(nodes)}
    touching = _touching(nodes)
    conflicts: dict[int, dict[int, tuple[Tensor, Tensor]]] = {}
    for write in writes:
        for node in touching[write.root]:
            if node is not write and _touches(node, write):
                first, second = sorted((position[node], position[write]))
                conflicts.setdefault(first, {})[second] = (node, write)
    return conflicts


def _followers(nodes: list[Tensor], first: int, last: int) -> set[Tensor]:
    """Of the nodes up to position `last`, the one at `first` and those that need its result."""
    found = {nodes[first]}
    for node in nodes[first + 1 : last + 1]:
        if any(src in found for src in node.srcs):
            found.add(node)
    return found


def _touched(node: Tensor) -> list[Tensor]:
    """What a node reads and writes; a view touches nothing by itself."""
    if node.op is None or node.op.kind == "view":
        return []
    return [*_sources(node), node] if node.op.kind == "write" else _sources(node)


def _touching(nodes: list[Tensor]) -> dict[Tensor, list[Tensor]]:
    """For each root, the nodes that read or write some of its memory."""
    users: dict[Tensor, list[Tensor]] = {}
    for node in nodes:
        for root in {tensor.root for tensor in _touched(node)}:
            users.setdefault(root, []).append(node)
    return users


def _touches(node: Tensor, write: Tensor) -> bool:
    """Whether a node reads or writes bytes that `write` writes."""
    return any(tensor.root is write.root and _overlap(tensor, write) for tensor in _touched(node))


def _overlap(a: Tensor, b: Tensor) -> bool:
    return a.offset < b.offset + b.extent and b.offset < a.offset + a.extent


def _share_bytes(a: Tensor, b: Tensor) -> bool:
    """Whether two views of one root have a byte in common, gaps between elements not counted."""
    memory = np.empty(max(a.offset + a.extent, b.offset + b.extent), np.uint8)
    return np.shares_memory(_items(a, memory), _items(b, memory))


def _items(tensor: Tensor, memory: Array) -> Array:
    """A tensor's elements, or blocks of them, as an array over its root's bytes."""
    shape = tensor.shape if tensor.dtype.block == 1 else (*tensor.shape[:-1], tensor.shape[-1] // tensor.dtype.block)
    return np.ndarray(shape, np.dtype((np.void, tensor.dtype.nbytes)), memory, tensor.offset, tensor.strides)
