import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphrt
from graphrt import Graph, PlacementError, Scheduler, ops
from graphrt.backends.reference import ReferenceBackend
from graphrt.buffer import ALIGNMENT, HostBuffer
from graphrt.memory import MemoryPlan

KIB = 1024


def plan_memory(graph: Graph) -> MemoryPlan:
    return Scheduler(["reference"]).schedule(graph).memory


def chain(x, length):
    for _ in range(length):
        x = ops.silu(x)
    return x


def test_a_chain_runs_in_place():
    x = graphrt.input("x", (256,))
    graph = Graph(chain(x, 10))
    plan = plan_memory(graph)
    assert plan.nbytes == 2 * KIB
    assert len(plan.inplace) == 9


def test_results_begin_where_memory_is_aligned():
    first = ops.silu(graphrt.input("x", (1, 80)))
    for begin, is_inplace in ((16, True), (1, False)):
        last = ops.silu(first[:, begin:])
        plan = plan_memory(Graph(last))
        assert plan.offsets[last] % ALIGNMENT == 0
        assert (last in plan.inplace) == is_inplace


def test_in_place_sees_through_views():
    x = graphrt.input("x", (16, 16))
    direct = Graph(ops.silu(ops.silu(x)))
    through = Graph(ops.silu(ops.silu(x).reshape(256)).reshape(4, 64))
    assert plan_memory(through).nbytes == plan_memory(direct).nbytes


def test_memory_of_dead_results_is_used_again():
    w = graphrt.weight("w", np.zeros((256, 256), np.float32))
    x = graphrt.input("x", (1, 256))
    for _ in range(10):
        x = ops.mul_mat(w, x)
    assert plan_memory(Graph(x)).nbytes == 3 * KIB


def test_an_input_with_data_lies_there_and_takes_no_memory():
    data = np.ones(256, np.float32)
    y = ops.silu(graphrt.input("x", data=data[:128]))
    assert plan_memory(Graph(y)).nbytes == 512
    plan = Scheduler(["reference"]).plan(Graph(y + 0))
    for value in (1.0, 2.0):
        data[:] = value
        np.testing.assert_allclose(plan.run()[0], value / (1 + np.exp(-value)), rtol=1e-6)
    np.testing.assert_array_equal(data, 2)
    assert np.shares_memory(plan.input("x"), data)


def test_inputs_with_other_data_are_other_graphs():
    scheduler, one, two = Scheduler(["reference"]), np.zeros(4, np.float32), np.ones(4, np.float32)
    plans = [scheduler.plan(Graph(ops.silu(graphrt.input("x", data=data)))) for data in (one, two)]
    assert plans[0].run()[0].tolist() == [0] * 4
    assert plans[1].run()[0][0] > 0.7


def test_a_state_lies_in_the_array_that_it_was_given():
    data = np.zeros((2, 4), np.float32)
    memory, rows = graphrt.state("memory", data=data), graphrt.input("rows", (2, 4))
    Scheduler(["reference"]).plan(Graph(ops.cpy(memory, rows))).run(rows=np.ones((2, 4), np.float32))
    np.testing.assert_array_equal(data, 1)


def test_workspace_is_part_of_the_plan():
    class Roomy(ReferenceBackend):
        def workspace(self, node):
            return 4096

    graph = Graph(ops.silu(graphrt.input("x", (256,))))
    assert Scheduler([Roomy()]).schedule(graph).memory.nbytes == 2 * KIB + 4096


def test_a_source_that_is_read_later_is_not_overwritten():
    x = graphrt.input("x", (256,))
    a = ops.silu(x)
    b = ops.relu(a)
    graph = Graph(a + b)
    assert plan_memory(graph).inplace == {graph.nodes[-1]: a}


def test_a_result_never_lies_over_a_shifted_view_of_its_own_source():
    x = graphrt.input("x", (2, 128))
    a = ops.silu(x)
    graph = Graph(ops.add(a[0], a[1]))
    add = graph.nodes[-1]
    assert add not in plan_memory(graph).inplace


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=25), st.data()
)
def test_any_graph_gives_the_reference_result_in_planned_memory(steps, data):
    """Random graphs of elementwise ops and views: each value computed in the shared arena equals NumPy's own."""
    rng = np.random.default_rng(len(steps))
    array = rng.standard_normal((4, 6)).astype(np.float32)
    x = graphrt.input("x", (4, 6))
    tensors, values = [x], [array]
    for kind, i, j in steps:
        a, va = tensors[i % len(tensors)], values[i % len(values)]
        b, vb = tensors[j % len(tensors)], values[j % len(values)]
        tensor, value = [
            lambda a=a, va=va: (ops.relu(a), np.maximum(va, 0)),
            lambda a=a, va=va, b=b, vb=vb: (a + b, va + vb),
            lambda a=a, va=va, b=b, vb=vb: (a - b, va - vb),
            lambda a=a, va=va: (
                ops.cont(a.reshape(6, 4).permute(1, 0)).reshape(4, 6),
                va.reshape(6, 4).T.reshape(4, 6),
            ),
            lambda a=a, va=va: (ops.scale(a, factor=0.5), va * np.float32(0.5)),
            lambda a=a, va=va: (ops.concat(a[2:], a[:2], axis=0), np.concatenate([va[2:], va[:2]])),
        ][kind]()
        tensors.append(tensor)
        values.append(value)
    kept = sorted(data.draw(st.sets(st.integers(1, len(tensors) - 1), min_size=1, max_size=3)))
    graph = Graph([tensors[k] for k in kept])
    outputs = Scheduler(["reference"]).plan(graph).run(x=array)
    for output, k in zip(outputs, kept, strict=True):
        np.testing.assert_allclose(output, values[k], rtol=1e-5, atol=1e-5)


def test_too_much_memory_is_a_placement_error():
    with pytest.raises(PlacementError, match=r"no room for .* bytes"):
        HostBuffer.allocate(1 << 60)
