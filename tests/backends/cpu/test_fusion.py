"""Nodes that the CPU backend runs as one: each pattern is found, and gives what its nodes give one by one."""

from __future__ import annotations

import numpy as np
import pytest

import graphrt
from graphrt import Graph, Scheduler, Tensor, dtypes, ops
from graphrt.backends.cpu import host
from graphrt.schedule import Schedule


def random(name: str, *shape: int, dtype: str = "f32") -> Tensor:
    """A constant of random numbers."""
    values = np.random.default_rng(sum(map(ord, name))).standard_normal(shape, np.float32)
    return graphrt.constant(name, dtypes.from_f32(values, dtypes.get(dtype)))


def fusions(schedule: Schedule) -> list[tuple[str, tuple[str, ...]]]:
    """Names of the fusions and of their nodes."""
    return [(fusion.fusion, fusion.nodes) for part in schedule.explain().splits for fusion in part.fusions]


def run(graph: Graph, fuse: int, threads: int = 2) -> list[np.ndarray]:
    return Scheduler(["cpu"], threads=threads, fuse=fuse).plan(graph).run()


def assert_alike(graph: Graph, *names: str, tolerance: float = 0.0) -> None:
    """The graph has fusions of these names; fused and not it gives the same."""
    assert [name for name, _ in fusions(Scheduler(["cpu"]).schedule(graph))] == list(names)
    for threads in (1, 2):
        for got, want in zip(run(graph, 1, threads), run(graph, 0), strict=True):
            if tolerance:
                error = graphrt.testing.normalised_error(got, want)
                assert error <= tolerance, f"{threads} threads: {error:.1e}"
            else:
                np.testing.assert_array_equal(got, want)


# -- add and norm ------------------------------------------------------------------------------------------------------


def residual(a: Tensor, b: Tensor, weight: Tensor | None = None) -> Graph:
    """The sum, doubled, and its norm."""
    total = ops.add(a, b).named("sum")
    return Graph([ops.rms_norm(total, weight).named("norm"), ops.scale(total, factor=2.0)])


@pytest.mark.parametrize("level", host.levels())
@pytest.mark.parametrize("shape", [(1, 64), (7, 2500)])
def test_add_and_norm(level, shape):
    with host.use_level(level):
        assert_alike(residual(random("a", *shape), random("b", *shape), random("w", shape[-1])), "add and norm")


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_add_and_norm_of_other_dtypes_and_strides(dtype):
    a = random("a", 40, 6, dtype=dtype).permute(1, 0)
    assert_alike(residual(a, random("b", 1, 40)), "add and norm")
    assert_alike(residual(ops.cont(a), a, random("w", 40)), "add and norm")


def test_a_norm_may_lie_over_a_term_of_the_sum():
    def graph() -> Graph:
        x, y = ops.neg(random("x", 4, 100)).named("x'"), ops.neg(random("y", 4, 100)).named("y'")
        return residual(x, y, random("w", 100))

    memory = Scheduler(["cpu"]).schedule(graph()).memory
    assert {(node.name, donor.name) for node, donor in memory.inplace.items()} >= {("sum", "x'"), ("norm", "y'")}
    assert_alike(graph(), "add and norm")


def test_no_add_and_norm_where_nothing_else_reads_the_sum():
    total = ops.add(random("a", 2, 8), random("b", 2, 8))
    assert fusions(Scheduler(["cpu"]).schedule(Graph(ops.rms_norm(total)))) == []
