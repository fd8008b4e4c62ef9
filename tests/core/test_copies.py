"""Copies: one for each value and memory, no more bytes than are read; counted on the pretend device's link."""

from __future__ import annotations

import numpy as np
import pytest

import graphrt
from graphrt import Graph, KernelError, Scheduler, Tensor, ops
from graphrt.backends.sim import SimBackend
from graphrt.buffer import ALIGNMENT
from graphrt.plan import Plan

D, E, U = 16, 8, 2
ROW = 4 * D


def weight(name: str, *shape: int) -> Tensor:
    return graphrt.weight(name, np.ones(shape, np.float32))


def plan(y: Tensor | list[Tensor], device: SimBackend, **options) -> Plan:
    """A plan over a device and the host; the clock begins after the weights were uploaded."""
    made = Scheduler([device, "reference"], **options).plan(Graph(y))
    device.clock.reset()
    return made


def names(made: Plan) -> list[tuple[str, str, int]]:
    return [(copy.value.name, copy.memory, copy.nbytes) for copy in made.schedule.copies.all()]


def test_a_value_is_copied_once_however_many_read_it():
    device, x = SimBackend(), graphrt.input("x", (3, D))
    branches = [ops.mul_mat(weight(f"w{i}", D, D), x) for i in range(4)]
    made = plan([branches[0] + branches[1] + branches[2] + branches[3]], device, overrides=["w=sim"])
    made.run(x=np.ones((3, D), np.float32))
    assert [copy[:2] for copy in names(made)] == [("x", "sim"), (made.graph.outputs[0].name, "host")]
    assert device.clock.nbytes["upload"] == device.clock.nbytes["download"] == 3 * ROW


def test_what_is_copied_is_aligned_as_it_was():
    """Views of one value begin at 4, 16 and 100 bytes: on the device, too, the second one's address divides by 16."""
    device, x, values = SimBackend(), graphrt.input("x", (1, 80)), np.arange(80, dtype=np.float32)[None]
    views = [x[:, 1:33], x[:, 4:68], x[:, 25:]]
    made = plan([ops.relu(view) for view in views], device, node_overrides=["relu=sim"])
    (copy,) = [copy for copy in made.schedule.copies.all() if copy.value is x]
    assert made.schedule.memory.offsets[copy] % ALIGNMENT == copy.first % ALIGNMENT == 0
    for got, view in zip(made.run(x=values), views, strict=True):
        np.testing.assert_array_equal(got, values[:, view.offset // 4 :][:, : view.shape[1]])


def test_a_copy_begins_near_what_is_read():
    device, x = SimBackend(), graphrt.input("x", (1, 4096))
    made = plan([ops.relu(x[:, 4000:])], device, node_overrides=["relu=sim"])
    (copy,) = [copy for copy in made.schedule.copies.all() if copy.value is x]
    assert copy.nbytes < 96 * 4 + ALIGNMENT
    assert np.array_equal(made.run(x=np.arange(4096, dtype=np.float32)[None])[0], np.arange(4000, 4096)[None])


def test_later_splits_read_the_same_copy():
    """The device reads x in two splits with work on the host between them."""
    device, x = SimBackend(), graphrt.input("x", (1, D))
    first = ops.mul_mat(weight("device.0", D, D), x)
    second = ops.mul_mat(weight("host", D, D), first)
    third = ops.mul_mat(weight("device.1", D, D), second) + x
    made = plan(third, device, overrides=["device=sim"])
    assert [copy[0] for copy in names(made) if copy[1] == "sim"].count("x") == 1
    assert np.array_equal(made.run(x=np.ones((1, D), np.float32))[0], np.full((1, D), D**3 + 1, np.float32))


def test_an_input_with_data_is_copied_to_a_device_at_each_run():
    device, data = SimBackend(), np.ones((1, D), np.float32)
    made = plan(ops.relu(graphrt.input("x", data=data)), device, node_overrides=["relu=sim"])
    for value in (1, 2):
        data[:] = value
        assert np.array_equal(made.run()[0], data)
    assert device.clock.nbytes["upload"] == 2 * ROW


def test_views_are_copied_as_far_as_they_are_read():
    device, x = SimBackend(), graphrt.input("x", (10, D))
    y = ops.relu(x[2:4]) + ops.neg(x[5:7])
    made = plan(y, device, node_overrides=["relu|neg|add=sim"])
    assert ("x", "sim", 5 * ROW) in names(made)
    made.run(x=np.ones((10, D), np.float32))
    assert device.clock.nbytes["upload"] == 5 * ROW


def test_resident_weights_are_uploaded_once_for_all_runs_and_plans():
    device = SimBackend()
    scheduler = Scheduler([device, "reference"], overrides=["w=sim"])
    w = weight("w", D, D)
    for rows in (1, 2):
        made = scheduler.plan(ops.mul_mat(w, graphrt.input("x", (rows, D))))
        for _ in range(3):
            made.run(x=np.ones((rows, D), np.float32))
    assert device.clock.nbytes["upload"] == w.nbytes + 3 * ROW + 3 * 2 * ROW


def test_what_a_write_left_is_copied_not_what_was_there_before():
    device = SimBackend()
    cache, ids = graphrt.state("cache", (4, D)), graphrt.input("ids", (1,), "i32")
    written = ops.set_rows(cache, graphrt.input("x", (1, D)), ids)
    made = plan(ops.relu(written), device, node_overrides=["relu=sim"])
    for row in range(2):
        result = made.run(x=np.full((1, D), row + 1, np.float32), ids=np.array([row], np.int32))[0]
    assert result[:, 0].tolist() == [1, 2, 0, 0]


@pytest.mark.parametrize(
    ("used", "runs"),
    [({0, 1}, 1), ({3, 5}, 2), ({2, 3, 4, 7}, 2), (set(range(E)), 1)],
    ids=str,
)
def test_only_the_experts_that_the_tokens_chose_are_copied(used, runs):
    """An offloaded mul_mat_id: the bytes on the link are those of x, the ids, and the used experts."""
    device, tokens = SimBackend(), 32
    w = graphrt.weight("up_exps", np.random.default_rng(0).standard_normal((E, D, D)).astype(np.float32))
    ids, x = graphrt.input("ids", (tokens, U), "i32"), graphrt.input("x", (tokens, 1, D))
    made = plan(ops.mul_mat_id(w, x, ids), device, op_offload_min_batch=8)
    chosen = np.resize(np.array(sorted(used), np.int32), (tokens, U))
    values = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    got = made.run(x=values, ids=chosen)[0]
    assert np.allclose(got, np.einsum("tumk,tk->tum", w.data[chosen], values[:, 0]), atol=1e-4)
    assert device.clock.nbytes["upload"] == len(used) * D * ROW + tokens * ROW + ids.nbytes
    assert device.clock.count["upload"] == runs + 2


def test_experts_chosen_anew_in_each_run_are_copied_anew():
    device, tokens = SimBackend(), 32
    w = graphrt.weight("up_exps", np.arange(E, dtype=np.float32).reshape(E, 1, 1) * np.ones((E, D, D), np.float32))
    ids, x = graphrt.input("ids", (tokens, 1), "i32"), graphrt.input("x", (tokens, 1, D))
    made = plan(ops.mul_mat_id(w, x, ids), device, op_offload_min_batch=1)
    for expert in (5, 2):
        got = made.run(x=np.ones(x.shape, np.float32), ids=np.full((tokens, 1), expert, np.int32))[0]
        assert np.all(got == expert * D)


def test_an_output_that_the_host_reads_too_keeps_its_copy_to_the_end():
    """The copy of an output that a split on the host needs is no memory to hand on."""
    device = SimBackend()
    a = ops.relu(graphrt.input("x", (1, D)))
    b = ops.neg(a)
    for _ in range(4):
        b = ops.neg(ops.dup(b))
    made = plan([a, b], device, node_overrides=["relu=sim", "neg|dup=reference"])
    x = np.arange(D, dtype=np.float32).reshape(1, D)
    first, second = made.run(x=x)
    assert np.array_equal(first, x)
    assert np.array_equal(second, -x)


def test_an_empty_tensor_needs_no_copy():
    y = ops.relu(graphrt.input("x", (0, D)))
    made = plan(y, SimBackend(), node_overrides=["relu=sim"])
    assert names(made) == []
    assert made.run(x=np.zeros((0, D), np.float32))[0].shape == (0, D)


def test_a_state_on_a_device_is_made_there_and_read_only_when_asked_for():
    device, cache = SimBackend(), graphrt.state("cache", (100, D))
    written = ops.set_rows(cache, graphrt.input("rows", (1, D)), graphrt.input("ids", (1,), "i32"))
    made = plan(written, device, overrides=["cache=sim"])
    made.set_input("rows", np.ones((1, D), np.float32))
    made.set_input("ids", np.array([7], np.int32))
    made.execute()
    assert not cache.has_data
    assert device.clock.nbytes["upload"] == ROW + 4
    assert device.clock.nbytes["download"] == 0
    assert np.flatnonzero(made.output().sum(1)).tolist() == [7]


def test_inputs_that_lie_side_by_side_go_to_a_device_as_one_copy():
    device = SimBackend(asynchronous=True)
    sizes = (1, 16, 17, 100)
    inputs = [graphrt.input(f"x{i}", (size,)) for i, size in enumerate(sizes)]
    plan_made = plan([ops.relu(x) for x in inputs], device, node_overrides=["relu=sim"])
    values = {f"x{i}": np.arange(size, dtype=np.float32) + i for i, size in enumerate(sizes)}
    for _ in range(2):
        device.clock.reset()
        results = plan_made.run(values)
        assert device.clock.count["upload"] == 1
        assert all(np.array_equal(got, values[f"x{i}"]) for i, got in enumerate(results))


def test_a_copy_of_several_that_fails_names_them_all():
    device = SimBackend(asynchronous=True, fail_copy=1)
    a, b = graphrt.input("a", (4,)), graphrt.input("b", (4,))
    made = plan(ops.add(a, b), device, node_overrides=["add=sim"])
    with pytest.raises(KernelError, match=r"a, b \(80 bytes\) from host to sim failed"):
        made.run(a=np.ones(4, np.float32), b=np.ones(4, np.float32))
    assert made.run()[0].tolist() == [2, 2, 2, 2]
