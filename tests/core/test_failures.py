"""Runs that fail or are stopped: a clear error, nothing left spinning, and the next run works."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import graphrt
from graphrt import Graph, KernelError, PlacementError, Scheduler, ops
from graphrt.backend import Backend
from graphrt.backends.sim import SimBackend
from graphrt.errors import Cancelled
from graphrt.plan import Plan
from tests.interrupts import HEED

AT_ONCE_OR_NOT = pytest.mark.parametrize("asynchronous", [False, True], ids=["at once", "asynchronous"])
W = np.eye(8, dtype=np.float32)
X = np.arange(16, dtype=np.float32).reshape(2, 8)


def device_plan(device: SimBackend) -> Plan:
    """relu(x · wᵀ) on the device, x and the result copied: run 1 makes copies 2 and 3, after the upload of w."""
    y = ops.relu(ops.mul_mat(graphrt.weight("w", W), graphrt.input("x", X.shape)).named("product")).named("result")
    return Scheduler([device, "reference"], overrides=["w=sim"]).plan(Graph(y))


@AT_ONCE_OR_NOT
@pytest.mark.parametrize(
    ("number", "message"),
    [
        (1, r"\[copy\] x \(64 bytes\) from host to sim failed: the link broke"),
        (2, r"\[copy\] result \(64 bytes\) from sim to host failed: the link broke"),
    ],
)
def test_a_copy_that_fails_is_named_and_the_next_run_works(number, message, asynchronous):
    device = SimBackend(failure=RuntimeError("the link broke"), asynchronous=asynchronous)
    plan = device_plan(device)
    device.failures.copy = number
    with pytest.raises(KernelError, match=message):
        plan.run(x=X)
    assert np.array_equal(plan.run(x=X)[0], X)


@AT_ONCE_OR_NOT
@pytest.mark.parametrize(("kernel", "name"), [("relu", "result"), (1, "product"), (2, "result")])
def test_a_kernel_that_raises_is_named_and_the_next_run_works(kernel, name, asynchronous):
    failure = RuntimeError("an illegal address")
    plan = device_plan(SimBackend(fail_kernel=kernel, failure=failure, asynchronous=asynchronous))
    with pytest.raises(KernelError, match=rf"the kernel of Tensor\({name}: .* failed: an illegal address"):
        plan.run(x=X)
    assert np.array_equal(plan.run(x=X)[0], X)


@AT_ONCE_OR_NOT
def test_an_upload_of_a_weight_that_fails_can_be_tried_again(asynchronous):
    device = SimBackend(fail_copy=1, asynchronous=asynchronous)
    y = ops.mul_mat(graphrt.weight("w", W), graphrt.input("x", X.shape))
    scheduler = Scheduler([device, "reference"], overrides=["w=sim"])
    with pytest.raises(KernelError, match=r"weight w .*to sim.*a failure on demand"):
        scheduler.plan(y)
    assert np.array_equal(scheduler.plan(y).run(x=X)[0], X)


def test_a_limit_that_is_exceeded_names_the_numbers_the_biggest_tensors_and_an_override():
    big, small = np.zeros((512, 8), np.float32), np.zeros((4, 512), np.float32)
    hidden = ops.mul_mat(graphrt.weight("blk.0.big", big), graphrt.input("x", X.shape))
    y = ops.mul_mat(graphrt.weight("blk.0.small", small), hidden)
    scheduler = Scheduler([SimBackend(limit=20_000), "reference"], overrides=["blk=sim"])
    with pytest.raises(PlacementError) as error:
        scheduler.plan(y)
    for words in (
        "sim holds 20,000 bytes",
        "blk.0.big 16,384 B",
        "blk.0.small 8,192 B",
        "it would fit with",
    ):
        assert words in str(error.value)
    rule = override_in(error.value)
    within = Scheduler([SimBackend(limit=20_000), "reference"], overrides=[rule, "blk=sim"])
    assert np.array_equal(within.plan(y).run(x=X)[0], Scheduler(["reference"]).plan(y).run(x=X)[0])


def on_shim(limit: int) -> Backend:
    from graphrt.backends.cuda import CudaBackend
    from graphrt.backends.cuda.shim_device import ShimDevice

    return CudaBackend(ShimDevice(limit=limit))


def override_in(error: BaseException) -> str:
    return str(error).split('it would fit with "')[1].removesuffix('" as the first override')


@pytest.mark.parametrize("make", [lambda limit: SimBackend(limit=limit), on_shim], ids=["sim", "cuda"])
def test_an_allocation_that_fails_since_others_took_the_memory_names_an_override_for_the_rest(make):
    big, small = np.zeros((512, 8), np.float32), np.zeros((4, 512), np.float32)
    hidden = ops.mul_mat(graphrt.weight("blk.0.big", big), graphrt.input("x", X.shape))
    y = ops.mul_mat(graphrt.weight("blk.1.small", small), hidden)
    device = make(100_000)
    taken, rules = device.allocate(80_000), [f"blk={device.name}"]
    with pytest.raises(PlacementError) as error:
        Scheduler([device, "reference"], overrides=rules).plan(y)
    numbers = r"no room for 16,384 bytes.*needs 28,736 and can have 20,000; the biggest: blk\.0\.big 16,384 B"
    assert re.search(numbers, str(error.value))
    rules.insert(0, override_in(error.value))
    assert Scheduler([device, "reference"], overrides=rules).plan(y).run(x=X)[0].shape == (len(X), 4)
    assert taken.nbytes == 80_000


def test_the_override_moves_the_experts_of_as_few_layers_as_will_do():
    x, ids = graphrt.input("x", (1, 1, 8)), graphrt.constant("ids", np.array([[0, 1]], np.int32))
    for layer in range(4):
        experts = graphrt.weight(f"blk.{layer}.ffn_up_exps.weight", np.ones((2, 8, 8), np.float32))
        square = graphrt.weight(f"blk.{layer}.attn_q.weight", np.ones((8, 8), np.float32))
        x = ops.mul_mat(square, ops.mul_mat_id(experts, x, ids)[:, :1])
    whole = Scheduler([SimBackend(), "reference"], overrides=["blk=sim"]).schedule(x)
    needed = whole.memory.sizes["sim"] + 4 * (512 + 256)
    scheduler = Scheduler([SimBackend(limit=needed - 600), "reference"], overrides=["blk=sim"])
    with pytest.raises(PlacementError) as error:
        scheduler.schedule(x)
    rule = override_in(error.value)
    assert rule == r"^blk\.(0|1)\.ffn_(gate|up|down|gate_up)_exps\.=reference"


def test_where_no_override_would_do_the_batch_is_named():
    y = ops.mul_mat(graphrt.weight("w", W), graphrt.input("x", (1000, 8)))
    scheduler = Scheduler([SimBackend(limit=100), "reference"], node_overrides=["mul_mat=sim"])
    with pytest.raises(PlacementError, match="choose a smaller batch or context, or raise the offload threshold"):
        scheduler.plan(y)


def test_memory_that_other_plans_took_is_an_error_and_is_given_back_with_them():
    device = SimBackend(limit=1000)
    scheduler = Scheduler([device, "reference"], overrides=["w=sim"])
    w = graphrt.weight("w", W)
    wide = [ops.mul_mat(w, graphrt.input("x", (rows, 8))) for rows in (8, 9)]
    scheduler.plan(wide[0])
    with pytest.raises(PlacementError, match=r"\[sim\] no room for .* of 1,000 are taken; .*Scheduler\.clear"):
        scheduler.plan(wide[1])
    scheduler.clear()
    x = np.ones((9, 8), np.float32)
    assert np.array_equal(scheduler.plan(wide[1]).run(x=x)[0], x)


@AT_ONCE_OR_NOT
def test_an_interrupt_inside_a_kernel_passes_and_the_next_run_works(asynchronous):
    plan = device_plan(SimBackend(fail_kernel=2, failure=KeyboardInterrupt(), asynchronous=asynchronous))
    with pytest.raises(KeyboardInterrupt):
        plan.run(x=X)
    assert np.array_equal(plan.run(x=X)[0], X)


@AT_ONCE_OR_NOT
def test_cancel_from_another_thread_stops_the_run_and_the_next_one_works(asynchronous):
    """A long chain that changes backend at each node; another thread cancels as soon as it runs."""
    y = graphrt.input("x", X.shape)
    for _ in range(1000):
        y = ops.neg(ops.relu(y))
    device = SimBackend(asynchronous=asynchronous)
    plan = Scheduler([device, "reference"], node_overrides=["relu=sim", "neg=reference"]).plan(Graph(y))
    started = device.clock.count

    def cancel_once_it_runs() -> None:
        while not started["relu"]:
            time.sleep(0.0001)
        plan.cancel()

    other = threading.Thread(target=cancel_once_it_runs)
    other.start()
    with pytest.raises(Cancelled, match="the run was cancelled"):
        plan.run(x=X)
    other.join()
    assert started["relu"] < 1000
    assert plan.run(x=X)[0].shape == X.shape


@AT_ONCE_OR_NOT
@pytest.mark.parametrize("node_by_node", [False, True])
def test_a_cancel_before_a_run_stops_that_run_and_no_other(node_by_node, asynchronous):
    plan = device_plan(SimBackend(asynchronous=asynchronous))
    plan.cancel()
    with pytest.raises(Cancelled, match="the run was cancelled"):
        plan.observe(lambda node, array: True) if node_by_node else plan.execute()
    assert np.array_equal(plan.run(x=X)[0], X)
    plan.cancel()
    plan.forget_cancel()
    assert np.array_equal(plan.run(x=X)[0], X)


def test_a_cancel_drops_what_waits_in_a_devices_queue():
    """The device is held up, the host waits for it: of the second split nothing runs after the cancel."""
    device = SimBackend(asynchronous=True)
    y = ops.relu(ops.mul_mat(graphrt.weight("w", W), graphrt.input("x", X.shape)))
    other = SimBackend("other", asynchronous=True)
    plan = Scheduler([device, other, "reference"], overrides=["w=sim"], node_overrides=["relu=other"]).plan(Graph(y))
    held, release, failed = threading.Event(), threading.Event(), []

    def hold() -> None:
        held.set()
        release.wait()

    def run() -> None:
        with pytest.raises(Cancelled) as error:
            plan.run(x=X)
        failed.append(error.value)

    device._queue.begin(hold)
    held.wait()
    runner = threading.Thread(target=run)
    runner.start()
    while not device._queue._items or not other._queue._works:
        time.sleep(0.0001)
    plan.cancel()
    release.set()
    runner.join()
    assert failed
    assert device.clock.count["mul_mat"] == other.clock.count["relu"] == 0
    assert np.array_equal(plan.run(x=X)[0], X)


def test_a_thread_whose_work_fails_does_not_fail_that_of_another():
    device = SimBackend(asynchronous=True, fail_kernel=1)
    plans = [device_plan(device), device_plan(device)]
    with pytest.raises(KernelError, match=r"the kernel of .*product"):
        plans[0].run(x=X)
    results = []
    thread = threading.Thread(target=lambda: results.append(plans[1].run(x=X)[0]))
    thread.start()
    thread.join()
    assert np.array_equal(results[0], X)


@AT_ONCE_OR_NOT
def test_a_watch_that_returns_false_stops_the_run_at_once(asynchronous):
    device = SimBackend(asynchronous=asynchronous)
    plan = device_plan(device)
    seen = []
    with pytest.raises(Cancelled, match="stopped after product"):
        plan.observe(lambda node, array: bool(seen.append(node.name)))
    assert seen == ["product"]
    assert device.clock.count["relu"] == 0


DECODE = """
import os, sys, time
import numpy as np
import graphrt
from graphrt import Graph, Scheduler, ops

w = graphrt.weight("w", np.eye(512, dtype=np.float32))
y = graphrt.input("x", (1, 512))
for _ in range(30):
    y = ops.relu(ops.mul_mat(w, y))
plan = Scheduler(["cpu"], threads=2).plan(Graph(y))
x = np.ones((1, 512), np.float32)
plan.run(x=x)
print("ready", flush=True)
try:
    while True:
        plan.execute()
except KeyboardInterrupt:
    pass
right = np.array_equal(plan.run(x=x)[0], x)
time.sleep(0.2)
before = time.process_time()
time.sleep(0.5)
print("right", right, "busy", time.process_time() - before < 0.1, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to a child")
def test_ctrl_c_stops_decoding_leaves_nothing_spinning_and_the_next_run_works():
    command = [sys.executable, "-c", f"{HEED}\n{DECODE}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (out, process.returncode) == ("right True busy True\n", 0), err
