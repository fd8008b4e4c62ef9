"""Nodes that run as one: the memory plan, runs node by node beside it, and the debug output."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

import graphrt
from graphrt import Graph, KernelError, NumericsError, Scheduler, Tensor, ops
from graphrt.backend import Group
from graphrt.explain import describe
from graphrt.fusion import Readers
from tests.core.fusing import FusingBackend

KIB = 1024


class Fusing(FusingBackend):
    """Runs all nodes with these names as one, and the others alone."""

    def __init__(self, *names: str, workspace: int = 0, is_apart: bool = False) -> None:
        super().__init__(0)
        self._names, self._bytes, self._is_apart = names, workspace, is_apart

    def workspace(self, node: Tensor) -> int:
        return 0

    def fuse(self, nodes: Sequence[Tensor], readers: Readers) -> list[Group]:
        members = tuple(node for node in nodes if node.name in self._names)
        groups = [Group((node,)) for node in nodes if node not in members[1:]]
        fused = Group(members, "test", self._bytes, is_apart=self._is_apart)
        return [fused if group.nodes[0] in members else group for group in groups]


def chain() -> Graph:
    """a = silu(x), b = relu(a), c = a + b, d = c · c: 1 KiB each."""
    x = graphrt.input("x", (256,))
    a = ops.silu(x).named("a")
    b = ops.relu(a).named("b")
    c = ops.add(a, b).named("c")
    return Graph(ops.mul(c, c).named("d"))


def expected(x: np.ndarray) -> np.ndarray:
    a = x / (1 + np.exp(-x))
    return (a + np.maximum(a, 0)) ** 2


X = np.linspace(-2, 2, 256, dtype=np.float32)


def by_name(graph: Graph) -> dict[str, Tensor]:
    return {node.name: node for node in graph.nodes}


def test_what_only_the_group_reads_has_no_memory():
    graph = chain()
    nodes = by_name(graph)
    memory = Scheduler([Fusing("b", "c")]).schedule(graph).memory
    assert memory.inner == {nodes["b"]}
    assert nodes["b"] not in memory.offsets
    assert Scheduler([Fusing("a", "b", "c")]).schedule(graph).memory.inner == {nodes["a"], nodes["b"]}
    assert Scheduler([Fusing("a", "b", "c")]).schedule(graph).compute_bytes == 2 * KIB
    assert Scheduler([Fusing()]).schedule(graph).compute_bytes == 3 * KIB


def test_a_result_does_not_take_over_what_another_node_of_the_group_reads():
    graph = chain()
    nodes = by_name(graph)
    alone, fused = (Scheduler([Fusing(*names)]).schedule(graph).memory for names in ((), ("b", "c")))
    assert alone.inplace[nodes["c"]] is nodes["a"]
    assert nodes["c"] not in fused.inplace, "b reads a, perhaps after parts of c were written"
    assert fused.inplace[nodes["d"]] is nodes["c"]


def test_a_group_that_is_apart_takes_over_nothing():
    graph = chain()
    nodes = by_name(graph)
    assert nodes["d"] in Scheduler([Fusing("d")]).schedule(graph).memory.inplace
    assert nodes["d"] not in Scheduler([Fusing("d", is_apart=True)]).schedule(graph).memory.inplace


def test_a_group_has_its_workspace_while_its_results_and_sources_are_there():
    graph = chain()
    schedule = Scheduler([Fusing("b", "c", workspace=4 * KIB)]).schedule(graph)
    assert schedule.compute_bytes == (1 + 1 + 1 + 4) * KIB
    assert list(schedule.memory.workspaces) == [by_name(graph)["b"]]


@pytest.mark.parametrize("names", [(), ("b", "c"), ("a", "b", "c"), ("a", "b", "c", "d")])
def test_runs_of_both_kinds_may_alternate_on_one_plan(names):
    plan = Scheduler([Fusing(*names)]).plan(chain())
    seen: dict[str, np.ndarray] = {}
    for factor in (1, 2, 3):
        x = X * np.float32(factor)
        np.testing.assert_allclose(plan.run(x=x)[0], expected(x), rtol=1e-5)
        plan.set_input("x", -x)
        plan.observe(lambda node, array: seen.update({node.name: array}))
        np.testing.assert_allclose(plan.output(), expected(-x), rtol=1e-5)
        np.testing.assert_allclose(seen["d"], expected(-x), rtol=1e-5)
        np.testing.assert_allclose(seen["b"], np.maximum(seen["a"], 0))
        np.testing.assert_allclose(plan.value(plan.graph.outputs[0]), expected(-x), rtol=1e-5)


def test_a_state_is_one_in_runs_of_both_kinds():
    memory, rows = graphrt.state("memory", (2, 4)), graphrt.input("rows", (1, 4))
    ids = graphrt.input("ids", (1,), "i64")
    written = ops.set_rows(memory, ops.sqr(rows).named("squares"), ids).named("written")
    plan = Scheduler([Fusing("squares", "written")]).plan(Graph([ops.sum_rows(written), written]))
    assert plan.schedule.is_fused
    plan.run(rows=np.full((1, 4), 2, np.float32), ids=np.zeros(1, np.int64))
    plan.set_input("ids", np.ones(1, np.int64))
    plan.observe(lambda node, array: True)
    assert plan.output(0).ravel().tolist() == [16, 16]
    assert plan.output(1).tolist() == [[4] * 4] * 2


def test_watched_runs_see_results_that_are_not_written_otherwise():
    graph = chain()
    plan = Scheduler([Fusing("a", "b", "c")], check_numerics=2).plan(graph)
    np.testing.assert_allclose(plan.run(x=X)[0], expected(X), rtol=1e-5)
    with pytest.raises(NumericsError, match=r"a f32\[256\] = silu on fusing is the first"):
        plan.run(x=np.full(256, np.nan, np.float32))


def test_times_are_told_of_every_node():
    profile = Scheduler([Fusing("a", "b", "c")]).schedule(chain()).profile({"x": X}, repeats=1)
    assert [step.name for step in profile.steps] == ["a", "b", "c", "d"]


def test_runs_node_by_node_take_more_memory_only_where_they_need_it_and_share_it():
    arena = graphrt.scheduler.SharedArena()
    scheduler = Scheduler([Fusing("a", "b", "c")])
    plans = [scheduler.fork().plan(chain(), arena) for _ in range(2)]
    for plan in plans:
        plan.set_input("x", X)
        plan.observe(lambda node, array: True)
    assert plans[0]._by_node.arenas["host"] is plans[1]._by_node.arenas["host"]
    assert plans[0]._by_node.arenas["host"] is not plans[0]._locations.arenas["host"]
    roomy = Scheduler([Fusing("b", "c", workspace=4 * KIB)]).plan(chain())
    assert roomy._by_node.arenas == roomy._locations.arenas


def test_the_setting_turns_it_off():
    schedule = Scheduler([Fusing("a", "b")], fuse=0).schedule(chain())
    assert not schedule.is_fused
    assert schedule.memory_by_node is schedule.memory
    assert schedule.explain().splits[0].fusions == ()


def test_the_debug_output_shows_what_runs_as_one():
    schedule = Scheduler([Fusing("a", "b")]).schedule(chain())
    assert "  as one (test): a, b\n" in describe(schedule, 3)
    assert "as one" not in describe(schedule, 2)
    told = Scheduler([Fusing("a", "b", "c")]).schedule(chain())
    assert "  as one (test): a, b, c; not written: a, b\n  a f32[256]" in describe(told, 3)
    (fusion,) = told.explain().splits[0].fusions
    assert (fusion.fusion, fusion.nodes, fusion.unwritten) == ("test", ("a", "b", "c"), ("a", "b"))


def test_what_programs_consist_of_is_told_when_a_plan_is_made(capsys):
    Scheduler([Fusing("a", "b")], sched_debug=3).plan(chain())
    assert "split #0: fusing, run as one by the references" in capsys.readouterr().err


WRONG: dict[str, tuple[Callable[[list[Tensor]], list[list[Tensor]]], str]] = {
    "lost": (lambda nodes: [nodes[:3]], "must put each of 4 nodes into one group, got 3"),
    "twice": (lambda nodes: [nodes[:3], nodes[2:]], "got 5"),
    "order": (lambda nodes: [[nodes[1], nodes[0]], nodes[2:]], "would run b before its source a"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_backend_that_groups_wrongly_is_named(case):
    wrong, message = WRONG[case]

    class Wrong(FusingBackend):
        def fuse(self, nodes, readers):
            return [Group(tuple(members)) for members in wrong(list(nodes))]

    with pytest.raises(KernelError, match=message):
        Scheduler([Wrong(0)]).schedule(chain())


def test_outputs_and_what_is_copied_are_kept():
    x = graphrt.input("x", (256,))
    a = ops.silu(x).named("a")
    b = ops.relu(a).named("b")
    graph = Graph([a, ops.neg(b).named("c")])
    assert Scheduler([Fusing("a", "b")]).schedule(graph).memory.inner == set()
