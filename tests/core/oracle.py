"""The right results of a graph, from the ops' references alone, and whether rounding leaves them well defined."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from graphrt import Graph, Tensor, dtypes
from graphrt.dtypes import Array

TOLERANCE, COARSE_TOLERANCE = 1e-8, 1e-2  # of what went through 16-bit or quantized products
COARSE = 1e-6  # normalised mean squared error from which on an op's result is coarse
ROUNDING = 1e-6  # relative to a result's root mean square: ten times what backends differ by in one f32 op
MARGIN = 10.0  # between the difference that disturbed results may have and the one that backends may have
RUNS = 2  # so that states pass from one to the next


class Oracle:
    """Runs a graph op by op, every result in memory of its own; states live from run to run.

    Args:
        disturbed: adds to each result what another backend might: plus or minus its rounding, by a generator.
    """

    def __init__(self, graph: Graph, inputs: Mapping[str, Array], disturbed: np.random.Generator | None = None) -> None:
        self.graph, self.inputs = graph, inputs
        self.states = {leaf: _bytes_of(leaf) for leaf in graph.leafs if leaf.role != "input"}
        self._disturbed = disturbed

    def run(self) -> list[Array]:
        """The outputs of one run."""
        memory = dict(self.states)
        for name, leaf in self.graph.inputs.items():
            memory[leaf] = np.ascontiguousarray(self.inputs[name]).reshape(-1).view(np.uint8)
        for node in self.graph.nodes:
            if node.root is node:
                memory[node] = np.zeros(node.nbytes, np.uint8)
            if node.op is not None and node.op.kind != "view":
                sources = [None if src is None else _array(src, memory) for src in node.srcs]
                result = node.op.evaluate(node, sources)
                _array(node, memory)[...] = (
                    result if self._disturbed is None else _disturb(node, result, self._disturbed)
                )
        return [_array(output, memory).copy() for output in self.graph.outputs]


def well_defined(graph: Graph, inputs: Mapping[str, Array], coarse: list[bool]) -> list[bool]:
    """For each output, whether its bound is far above what the rounding of all results before it moves.

    One that is not has no right answer to a bound: as where numbers that cancelled or were clamped are multiplied by
    large ones again, or where of three numbers relu leaves the one that was near zero.
    """
    exact, disturbed = Oracle(graph, inputs), Oracle(graph, inputs, np.random.default_rng(0))
    worst = [0.0] * len(coarse)
    for _ in range(RUNS):
        worst = [max(pair) for pair in zip(worst, map(difference, disturbed.run(), exact.run()), strict=True)]
    return [error * MARGIN <= tolerance(is_coarse) for error, is_coarse in zip(worst, coarse, strict=True)]


def tolerance(coarse: bool) -> float:
    """The `difference` that an output may have."""
    return COARSE_TOLERANCE if coarse else TOLERANCE


def difference(got: Array, expected: Array) -> float:
    """Mean squared difference over the mean square of the expected or 1e-3, whichever is more; infinite for NaN."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return float("inf")
    if dtypes.of(got).is_integer:
        return 0.0 if np.array_equal(got, expected) else float("inf")
    a, b = dtypes.to_f32(got).astype(np.float64), dtypes.to_f32(expected).astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    return float(np.mean((a - b) ** 2) / max(np.mean(b**2), 1e-3)) if a.size else 0.0


def _disturb(node: Tensor, result: Array, random: np.random.Generator) -> Array:
    """A result with each number moved up or down by its rounding; not one of an op that computes nothing."""
    assert node.op is not None
    allowed = node.op.tolerance_of(node)
    if not allowed or node.op.kind == "write" or node.dtype.is_integer or not result.size:
        return result
    step = allowed**0.5 / 2 if allowed > COARSE else ROUNDING
    size = step * np.sqrt(np.mean(result.astype(np.float64) ** 2))
    return (result + random.choice([-size, size], result.shape)).astype(result.dtype)


def _array(tensor: Tensor, memory: Mapping[Tensor, Array]) -> Array:
    return tensor.array_over(memory[tensor.root], tensor.offset)


def _bytes_of(leaf: Tensor) -> Array:
    assert leaf.data is not None
    assert leaf.is_dense
    return np.frombuffer(leaf.data.tobytes(), np.uint8).copy()
