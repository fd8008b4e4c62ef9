"""A plan: a graph placed, split, given memory and compiled; it runs any number of times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from graphrt import dtypes
from graphrt.backend import Buffer, Location, Program, Split
from graphrt.dtypes import Array
from graphrt.errors import GraphError
from graphrt.graph import Graph
from graphrt.memory import MemoryPlan
from graphrt.placement import Placement
from graphrt.splits import SplitNodes
from graphrt.tensor import Tensor


@dataclass
class Layout:
    """Where every tensor of a graph lies: results in the arena, leafs in their own data."""

    memory: MemoryPlan
    arena: Buffer
    locations: dict[Tensor, Location]
    workspaces: dict[Tensor, Location]


class SharedArena:
    """Memory for several plans of which one runs at a time, as a model's plans for prompts and for single tokens.

    A plan's inputs and outputs are then good only until another plan over the same arena runs.
    """

    def __init__(self) -> None:
        self._buffer = Buffer.allocate(0)

    def at_least(self, nbytes: int) -> Buffer:
        """Memory of that size or more; plans made before keep theirs."""
        if self._buffer.nbytes < nbytes:
            self._buffer = Buffer.allocate(nbytes)
        return self._buffer


def lay_out(graph: Graph, memory: MemoryPlan, shared: SharedArena | None = None) -> Layout:
    """Allocate the arena, or take it from a shared one, and give every tensor its location."""
    arena = Buffer.allocate(memory.nbytes) if shared is None else shared.at_least(memory.nbytes)
    leafs = {leaf: Buffer.of_leaf(leaf) for leaf in graph.leafs if leaf.data is not None}
    locations = {}
    for tensor in [*graph.leafs, *graph.nodes]:
        root = tensor.root
        locations[tensor] = (
            Location(leafs[root], tensor.offset) if root in leafs else Location(arena, memory.offset_of(tensor))
        )
    workspaces = {node: Location(arena, offset) for node, offset in memory.workspaces.items()}
    return Layout(memory, arena, locations, workspaces)


class Plan:
    """A compiled graph.

    `run` takes the inputs and returns the outputs. The faster way for a loop: keep `input(name)` and `output(i)`,
    which are arrays over the plan's own memory, write the one, call `execute()`, read the other.
    """

    def __init__(
        self, graph: Graph, placements: Mapping[Tensor, Placement], splits: list[SplitNodes], layout: Layout
    ) -> None:
        self.graph = graph
        self.placements = placements
        self.splits = splits
        self._layout = layout
        self._inputs = {name: layout.locations[leaf].array(leaf) for name, leaf in graph.inputs.items()}
        self._programs: list[Program] = [
            part.backend.compile(Split(part.backend, part.nodes, layout.locations, layout.workspaces))
            for part in splits
        ]

    @property
    def compute_bytes(self) -> int:
        """Size of the compute buffer: every result, input and workspace of the graph."""
        return self._layout.memory.nbytes

    @property
    def memory(self) -> MemoryPlan:
        return self._layout.memory

    def input(self, name: str) -> Array:
        """The memory of an input, to be written before `execute`.

        Raises: GraphError, listing the inputs, if there is none of that name.
        """
        if name not in self._inputs:
            raise GraphError(f'[plan] no input is called "{name}"; there are: {", ".join(self._inputs) or "none"}')
        return self._inputs[name]

    def output(self, index: int = 0) -> Array:
        """The memory of an output, to be read after `execute` and before the next."""
        tensor = self.graph.outputs[index]
        return self._layout.locations[tensor].array(tensor)

    def execute(self) -> None:
        """Run every split once over what the inputs hold now."""
        for program in self._programs:
            program.run()

    def run(self, inputs: Mapping[str, Array] | None = None, /, **named: Array) -> list[Array]:
        """Set inputs, run, and return copies of the outputs, in the graph's order.

        An input that is not given keeps the bytes of the run before (zeros at first).
        Raises: GraphError if an array's shape or dtype does not fit its input.
        """
        for name, array in {**(inputs or {}), **named}.items():
            self._set(name, np.asarray(array))
        self.execute()
        return [self.output(i).copy() for i in range(len(self.graph.outputs))]

    def _set(self, name: str, array: Array) -> None:
        memory = self.input(name)
        if array.shape != memory.shape:
            raise GraphError(f'[plan] input "{name}" has shape {list(memory.shape)}, got {list(array.shape)}')
        if array.dtype != memory.dtype and not np.can_cast(array.dtype, memory.dtype, "same_kind"):
            raise GraphError(
                f'[plan] input "{name}" is {dtypes.of(memory)}, got an array of {array.dtype}; convert it with .astype'
            )
        memory[...] = array
