"""Copy queues: weights of offloaded products come while the split before runs, into room that nothing else uses."""

from __future__ import annotations

import threading
import time
from itertools import pairwise

import numpy as np
import pytest

import graphrt
from graphrt import Cancelled, KernelError, Plan, Scheduler, ops
from graphrt.backends.sim import Host, SimBackend

D, T, LAYERS = 64, 32, 6  # features, tokens, layers of a chain
E, U = 8, 2  # experts, experts used
RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.standard_normal((LAYERS, D, D), np.float32) / D**0.5
EXPERTS = RANDOM.standard_normal((3, E, D, D), np.float32) / D**0.5
X = RANDOM.standard_normal((T, D), np.float32)

PRODUCT = 2 * T * D * D  # operations of one product
FLOPS, LINK = 1e9, WEIGHTS[0].nbytes * 1e9 / PRODUCT  # rates at which a product takes as long as bringing its weight


def planned(result: graphrt.Tensor, *, copies: bool = True, **device: object) -> tuple[Plan, SimBackend, Host]:
    """A plan that offloads every product to a device; `copies`: with its copy queue."""
    host = Host()
    sim = SimBackend(host=host, flops=FLOPS, bandwidth=1e15, link=LINK, asynchronous=True, **device)
    if not copies:
        sim.copy_queue = None
    scheduler = Scheduler([sim, "reference"], op_offload_min_batch=1)
    return scheduler.plan(result), sim, host


def chain() -> graphrt.Tensor:
    """Products in a row, each with a weight on the host."""
    y = graphrt.input("x", (T, D))
    for number, w in enumerate(WEIGHTS):
        y = ops.mul_mat(graphrt.weight(f"blk.{number}.w", w), y).named(f"y-{number}")
    return y


def experts() -> graphrt.Tensor:
    """Gate and up of the chosen experts, and down."""
    x, scores = graphrt.input("x", (T, D)), graphrt.input("scores", (T, E))
    gate, up, down = (
        graphrt.weight(f"{name}_exps", w) for name, w in zip(("gate", "up", "down"), EXPERTS, strict=True)
    )
    ids, rows = ops.top_k(ops.relu(scores), k=U), x.reshape(T, 1, D)
    return ops.mul_mat_id(down, ops.swiglu(ops.mul_mat_id(gate, rows, ids), ops.mul_mat_id(up, rows, ids)), ids)


def test_a_weight_comes_while_the_split_before_runs():
    plan, _, _ = planned(chain())
    copies = [copy for copy in plan.schedule.copies.all() if copy.value.role == "weight"]
    assert [copy.split for copy in copies] == list(range(LAYERS))
    assert [copy.beside for copy in copies] == [None, *range(LAYERS - 1)]


def test_copies_and_products_overlap_on_the_virtual_clock():
    """Products take as long as copies: one by one 2 x LAYERS of them, overlapped LAYERS + 1."""
    seconds = {}
    for copies in (False, True):
        plan, _, host = planned(chain(), copies=copies)
        start = host.now
        (result,) = plan.run(x=X)
        seconds[copies] = host.now - start
        assert np.allclose(result, np.linalg.multi_dot([X, *(w.T for w in WEIGHTS)]), atol=1e-5)
    assert seconds[True] / seconds[False] == pytest.approx((LAYERS + 1) / (2 * LAYERS), rel=0.1)


def test_two_weights_have_room_at_once_and_no_more():
    plan, _, _ = planned(chain())
    offsets = [plan.schedule.memory.offsets[copy] for copy in plan.schedule.copies.all() if copy.is_queued]
    assert all(a != b for a, b in pairwise(offsets))
    assert len(set(offsets)) < LAYERS


def test_down_comes_while_gate_and_up_run_and_the_experts_numbers_are_read_once():
    plan, device, _ = planned(experts())
    when = {copy.value.name: (copy.split, copy.beside) for copy in plan.schedule.copies.all() if copy.is_queued}
    assert when == {"gate_exps": (1, None), "up_exps": (1, None), "down_exps": (2, 1)}
    scores = np.zeros((T, E), np.float32)
    scores[:, [2, 5]] = (2, 1)
    device.clock.reset()
    (result,) = plan.run(x=X, scores=scores)
    assert device.clock.count["download"] == 2, "the numbers of the experts, and the result"
    assert device.clock.nbytes["upload"] == 3 * U * EXPERTS[0, 0].nbytes + X.nbytes + scores.nbytes
    gate, up = (np.einsum("enk,tk->ten", w[[2, 5]], X) for w in EXPERTS[:2])
    unit = gate / (1 + np.exp(-gate)) * up
    assert np.allclose(result, np.einsum("enk,tek->ten", EXPERTS[2][[2, 5]], unit), atol=1e-4)


def test_runs_node_by_node_copy_in_turn():
    plan, _, _ = planned(chain())
    seen = []
    plan.set_input("x", X)
    plan.observe(lambda node, array: seen.append(array))
    assert np.array_equal(seen[-1], plan.run(x=X)[0])


def test_a_small_weight_that_no_batch_asked_for_comes_in_turn():
    y = ops.add(graphrt.input("x", (T, D)), graphrt.weight("bias", np.ones(D, np.float32)))
    device = SimBackend(asynchronous=True)
    plan = Scheduler([device, "reference"], node_overrides=["add=sim"]).plan(y)
    assert not any(copy.is_queued for copy in plan.schedule.copies.all())


@pytest.mark.parametrize("number", range(2, 2 + LAYERS))
def test_a_copy_that_fails_names_the_weight_and_leaves_the_device_usable(number):
    plan, _, _ = planned(chain(), fail_copy=number)
    with pytest.raises(KernelError, match=r"(blk\.\d\.w|x|y-5) \([\d,]+ bytes\) from host to sim failed: .* on demand"):
        plan.run(x=X)
    assert np.array_equal(plan.run(x=X)[0], planned(chain())[0].run(x=X)[0])


def test_a_cancel_drops_what_the_copy_queue_has_not_begun():
    plan, device, _ = planned(chain())
    expected, release, uploads = plan.run(x=X)[0], threading.Event(), device.clock.count["upload"]
    device.copy_queue.begin(release.wait)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            plan.run(x=X)
        except Cancelled as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while not device.copy_queue._items:
        time.sleep(0.0001)
    plan.cancel()
    release.set()
    thread.join()
    assert failed
    assert device.clock.count["upload"] - uploads < LAYERS
    assert np.array_equal(plan.run(x=X)[0], expected)
