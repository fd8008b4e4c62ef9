import numpy as np
import pytest

import graphrt
from graphrt import Graph, GraphError, Scheduler, SettingsError, ops
from graphrt.backend import available
from graphrt.explain import describe

W = np.arange(12, dtype=np.float32).reshape(3, 4)
X = np.ones((2, 4), np.float32)


def graph():
    return Graph(
        ops.silu(ops.mul_mat(graphrt.weight("blk.0.ffn_up.weight", W), graphrt.input("x", (2, 4)))).named("out")
    )


def expected():
    y = X @ W.T
    return y / (1 + np.exp(-y))


@pytest.mark.parametrize("backends", [["cpu"], ["reference"], ["cpu", "reference"]], ids=str)
def test_a_graph_runs_on_each_backend(backends):
    assert np.allclose(Scheduler(backends).run(graph(), x=X), expected(), atol=1e-5)


def test_a_plan_runs_again_with_new_inputs_and_keeps_old_ones():
    plan = Scheduler(["reference"]).plan(graph())
    assert np.allclose(plan.run(x=X)[0], expected(), atol=1e-5)
    assert np.allclose(plan.run(x=0 * X)[0], 0)
    plan.input("x")[...] = X
    plan.execute()
    assert np.allclose(plan.output(), expected(), atol=1e-5)


def test_equal_graphs_share_a_plan():
    scheduler, w, x = Scheduler(["reference"]), graphrt.weight("w", W), graphrt.input("x", (2, 4))
    assert scheduler.plan(ops.mul_mat(w, x)) is scheduler.plan(ops.mul_mat(w, x))
    assert scheduler.plan(ops.mul_mat(w, x)) is not scheduler.plan(ops.silu(ops.mul_mat(w, x)))


def test_a_state_keeps_what_was_written():
    cache = graphrt.state("cache", (4, 2))
    written = ops.set_rows(cache, graphrt.input("rows", (1, 2)), graphrt.input("ids", (1,), "i32"))
    plan = Scheduler().plan(Graph(ops.sum_rows(written)))
    plan.run(rows=np.ones((1, 2), np.float32), ids=np.array([1], np.int32))
    result = plan.run(rows=np.full((1, 2), 2, np.float32), ids=np.array([3], np.int32))[0]
    assert result[:, 0].tolist() == [0, 2, 0, 4]


def test_wrong_inputs_are_named():
    plan = Scheduler(["reference"]).plan(graph())
    with pytest.raises(GraphError, match=r'no input is called "y"; there are: x'):
        plan.run(y=X)
    with pytest.raises(GraphError, match=r'input "x" has shape \[2, 4\], got \[4, 2\]'):
        plan.run(x=X.T)
    with pytest.raises(GraphError, match=r'input "x" is f32, got an array of complex'):
        plan.run(x=X.astype(np.complex64))


def test_unknown_backend_lists_what_exists():
    with pytest.raises(SettingsError, match=r'no backend is called "cudaa"; there are: .*cpu'):
        Scheduler(["cudaa"])
    assert {"cpu", "reference"} <= set(available())


def test_an_override_moves_the_nodes_of_a_weight():
    plan = Scheduler(overrides=[r"ffn_(up|down)=reference"]).plan(graph())
    node = next(node for node in plan.graph.nodes if node.op is ops.mul_mat)
    assert plan.placements[node].backend.name == "reference"
    assert plan.placements[node].reason == 'override "ffn_(up|down)=reference"'


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("exps", r'"exps" is not of the form regex=backend'),
        ("exps=gpu", r'"exps=gpu": no backend is called "gpu"; there are: cpu, reference'),
        ("e(xps=cpu", r'"e\(xps=cpu": the pattern is not a regular expression'),
    ],
)
def test_a_bad_override_is_quoted(rule, message):
    with pytest.raises(SettingsError, match=message):
        Scheduler(overrides=[rule])


def test_an_override_that_matches_nothing_is_reported():
    schedule = Scheduler(overrides=["nothing=cpu"]).schedule(graph())
    assert 'rule "nothing=cpu": matches nothing here' in describe(schedule, 1)


def test_debug_output_names_every_node_and_reason(capsys):
    plan = Scheduler(sched_debug=2).plan(graph())
    printed = capsys.readouterr().err
    assert printed.strip() == describe(plan.schedule, 2)
    assert "split #0: cpu, 2 nodes" in printed
    assert "out f32[2, 3] 24 B @cpu = silu(" in printed
    assert "blk.0.ffn_up.weight f32[3, 4] 48 B @cpu" in printed


def test_a_node_without_kernel_runs_its_reference_and_the_output_says_so():
    x = graphrt.input("x", (1, 1, 1, 1, 2))
    plan = Scheduler().plan(Graph(ops.silu(x)))
    assert plan.schedule.splits[0].backend.name == "reference"
    assert "not on cpu: " in describe(plan.schedule, 2)
    assert plan.run(x=np.zeros(x.shape, np.float32))[0].shape == x.shape
