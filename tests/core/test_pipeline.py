"""Pipelines: runs overlap on asynchronous devices, with the results, order and errors of runs one by one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

import graphrt
from graphrt import Cancelled, Graph, GraphError, KernelError, Plan, Scheduler, ops
from graphrt.backends.sim import Host, SimBackend
from graphrt.pipeline import Pipeline

D, T, LAYERS, RUNS = 64, 8, 4, 6  # features, tokens of a ubatch, layers on each device, ubatches
RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.standard_normal((2 * LAYERS, D, D), np.float32) / D**0.5
PARTS = RANDOM.standard_normal((RUNS, T, D), np.float32)


def layers() -> graphrt.Tensor:
    """Layers 0 to 3 on sim0, 4 to 7 on sim1."""
    y = graphrt.input("x", (T, D))
    for number, w in enumerate(WEIGHTS):
        y = ops.relu(ops.mul_mat(graphrt.weight(f"blk.{number}.w", w), y).named(f"up-{number}")).named(f"out-{number}")
    return y


def expected(x: np.ndarray) -> np.ndarray:
    for w in WEIGHTS:
        x = np.maximum(x @ w.T, 0)
    return x


def two_halves(**kinds: object) -> tuple[Plan, Host, list[SimBackend]]:
    """Two devices, each with half of the layers, which take about as long on both; the link takes a tenth of that."""
    host = Host()
    devices = [SimBackend(f"sim{i}", host=host, flops=1e9, bandwidth=1e12, link=1e8, **kinds) for i in range(2)]
    overrides = [r"blk\.[0-3]=sim0", r"blk\.[4-7]=sim1"]
    return Scheduler([*devices, "reference"], overrides=overrides).plan(Graph(layers())), host, devices


def test_each_result_is_that_of_its_run_alone_and_in_order():
    plan, _, _ = two_halves(asynchronous=True)
    pipeline, results = Pipeline(depth=2), []
    for x in PARTS:
        pipeline.submit(plan, x=x)
    assert len(pipeline) == RUNS
    while pipeline:
        results.append(pipeline.result()[0])
    for x, got in zip(PARTS, results, strict=True):
        assert np.array_equal(got, plan.run(x=x)[0])
        assert np.allclose(got, expected(x), atol=1e-5)


def seconds(run_all: Callable[[Plan], None]) -> float:
    """Virtual time that all runs take the host, which waits for them in the end."""
    plan, host, _ = two_halves(asynchronous=True)
    start = host.now
    run_all(plan)
    return host.now - start


def one_by_one(plan: Plan) -> None:
    for x in PARTS:
        plan.run(x=x)


def in_a_pipeline(plan: Plan, depth: int) -> None:
    pipeline = Pipeline(depth)
    for x in PARTS:
        pipeline.submit(plan, x=x)
    while pipeline:
        pipeline.result()


def test_the_halves_overlap_on_the_virtual_clock():
    """The total is that of the slower half, and of the other half once."""
    alone = seconds(one_by_one)
    overlapped = seconds(lambda plan: in_a_pipeline(plan, depth=2))
    half = alone / RUNS / 2
    assert overlapped == pytest.approx((RUNS + 1) * half, rel=0.1)
    assert overlapped < 0.65 * alone


def test_a_pipeline_of_one_does_not_overlap():
    assert seconds(lambda plan: in_a_pipeline(plan, depth=1)) == pytest.approx(seconds(one_by_one))


def test_submit_returns_before_the_run_is_done_and_waits_for_the_oldest_when_the_pipeline_is_full():
    plan, host, devices = two_halves(asynchronous=True)
    pipeline, start = Pipeline(depth=2), host.now
    pipeline.submit(plan, x=PARTS[0])
    pipeline.submit(plan, x=PARTS[1])
    assert host.now == start, "the host has waited for nothing"
    pipeline.submit(plan, x=PARTS[2])
    assert host.now > start
    assert devices[1].clock.count["mul_mat"] >= LAYERS


def test_inputs_may_be_written_again_as_soon_as_submit_returns():
    plan, _, _ = two_halves(asynchronous=True)
    x, pipeline = PARTS[0].copy(), Pipeline(depth=2)
    pipeline.submit(plan, x=x)
    x[:] = np.nan
    plan.input("x")[...] = np.nan
    assert np.allclose(pipeline.result()[0], expected(PARTS[0]), atol=1e-5)


def test_states_pass_from_run_to_run_in_order():
    memory = graphrt.state("memory", (4,))
    y = ops.cpy(memory, ops.scale(memory, factor=2.0) + graphrt.input("x", (4,))).named("next")
    device = SimBackend(asynchronous=True)
    plan = Scheduler([device, "reference"], overrides=["memory=sim"]).plan(Graph(ops.scale(y, factor=1.0)))
    pipeline, values, want = Pipeline(depth=3), [], np.zeros(4, np.float32)
    for number in range(8):
        pipeline.submit(plan, x=np.full(4, number, np.float32))
    for number in range(8):
        want = 2 * want + number
        values.append((pipeline.result()[0], want))
    for got, right in values:
        assert np.array_equal(got, right)


def test_several_plans_share_a_pipeline():
    """As ubatches of a prompt do, of which each sees more cells."""
    device = SimBackend(asynchronous=True)
    scheduler, arena = Scheduler([device, "reference"], overrides=["w=sim"]), graphrt.SharedArena()
    w = graphrt.weight("w", WEIGHTS[0])
    plans = [scheduler.plan(Graph(ops.relu(ops.mul_mat(w, graphrt.input("x", (n, D))))), arena) for n in range(1, T)]
    pipeline = Pipeline(depth=2)
    for n, plan in enumerate(plans, 1):
        pipeline.submit(plan, x=PARTS[0, :n])
    for n in range(1, T):
        assert np.allclose(pipeline.result()[0], np.maximum(PARTS[0, :n] @ WEIGHTS[0].T, 0), atol=1e-5)


@pytest.mark.parametrize("device", [0, 1])
def test_a_failure_surfaces_where_the_result_is_taken_and_the_pipeline_works_again(device):
    plan, _, devices = two_halves(asynchronous=True)
    pipeline = Pipeline(depth=3)
    nodes = plan.schedule.splits[device].nodes
    devices[device].failures.kernel = len(nodes) + 1
    for x in PARTS[:3]:
        pipeline.submit(plan, x=x)
    assert np.allclose(pipeline.result()[0], expected(PARTS[0]), atol=1e-5)
    with pytest.raises(KernelError, match=rf"the kernel of Tensor\({nodes[0].name}: .* failed: a failure on demand"):
        pipeline.result()
    assert len(pipeline) == 0
    in_a_pipeline(plan, depth=2)
    assert np.allclose(plan.run(x=PARTS[1])[0], expected(PARTS[1]), atol=1e-5)


def test_cancel_drops_what_is_under_way_and_the_pipeline_works_again():
    plan, _, devices = two_halves(asynchronous=True)
    pipeline, held, started = Pipeline(depth=4), threading.Event(), threading.Event()

    def hold():
        started.set()
        held.wait()

    devices[0]._queue.begin(hold)
    started.wait()
    for x in PARTS[:3]:
        pipeline.submit(plan, x=x)
    other = threading.Thread(target=pipeline.cancel)
    other.start()
    other.join()
    held.set()
    with pytest.raises(Cancelled, match="cancelled"):
        pipeline.result()
    assert [device.clock.count["mul_mat"] for device in devices] == [0, 0]
    assert len(pipeline) == 0
    pipeline.submit(plan, x=PARTS[0])
    assert np.allclose(pipeline.result()[0], expected(PARTS[0]), atol=1e-5)


def test_a_host_split_in_the_middle_makes_submit_wait_and_the_results_stay_right():
    device = SimBackend(asynchronous=True)
    y = layers()
    plan = Scheduler([device, "reference"], overrides=["w=sim"], node_overrides=["out-[25]=reference"]).plan(Graph(y))
    assert len(plan.schedule.splits) == 5
    pipeline = Pipeline(depth=2)
    for x in PARTS:
        pipeline.submit(plan, x=x)
    for x in PARTS:
        assert np.allclose(pipeline.result()[0], expected(x), atol=1e-5)


def test_a_pipeline_over_synchronous_backends_gives_the_same():
    plan = Scheduler(["reference"]).plan(Graph(layers()))
    pipeline = Pipeline(depth=2)
    for x in PARTS:
        pipeline.submit(plan, x=x)
    for x in PARTS:
        assert np.allclose(pipeline.result()[0], expected(x), atol=1e-5)


def test_no_thread_is_left_when_the_work_is_done():
    plan, _, _ = two_halves(asynchronous=True)
    in_a_pipeline(plan, depth=2)
    deadline = time.monotonic() + 5
    while any(thread.name.startswith("queue of sim") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_wrong_use_is_an_error():
    with pytest.raises(GraphError, match=r"\[pipeline\] depth is 0; it must be 1 or more"):
        Pipeline(depth=0)
    with pytest.raises(GraphError, match=r"\[pipeline\] no run is under way; submit one first"):
        Pipeline().result()


def test_the_memory_that_it_takes_is_told(capsys):
    """Staging: the input and what goes from sim0 to sim1; outputs are read into memory of their own."""
    devices = [SimBackend("sim0", asynchronous=True), SimBackend("sim1", asynchronous=True)]
    scheduler = Scheduler(
        [*devices, "reference"], overrides=[r"blk\.[0-3]=sim0", r"blk\.[4-7]=sim1"], sched_debug=1, threads=1
    )
    plan = scheduler.plan(Graph(layers()))
    assert plan.schedule.staging_bytes == plan.schedule.explain().staging_bytes == 2 * PARTS[0].nbytes
    assert "staging for asynchronous devices: 4,096 bytes on the host for each run under way" in capsys.readouterr().err
    pipeline = Pipeline(depth=3)
    for x in PARTS[:2]:
        pipeline.submit(plan, x=x)
    told = "pipeline: up to 3 runs under way, 6,144 bytes on the host for each (4,096 staging, 2,048 outputs)\n"
    assert capsys.readouterr().err == told
