"""The pretend device: memory that nothing else reaches, a limit, gaps, a clock, failures."""

from __future__ import annotations

import numpy as np
import pytest

import graphrt
from graphrt import Graph, KernelError, PlacementError, Scheduler, Settings, ops
from graphrt.backend import Split, create
from graphrt.backends.sim import SimBackend
from graphrt.buffer import HostBuffer, Location
from graphrt.testing import check

D = 32
W = np.random.default_rng(0).standard_normal((D, D)).astype(np.float32)
X = np.random.default_rng(1).standard_normal((4, D)).astype(np.float32)


def product():
    return ops.mul_mat(graphrt.weight("w", W), graphrt.input("x", X.shape))


def test_it_is_found_by_name():
    device = create("sim", Settings())
    assert (device.name, device.memory, device.limit) == ("sim", "sim", 8 << 30)


@pytest.mark.parametrize("op", [ops.mul_mat, ops.rope, ops.set_rows, ops.attention], ids=str)
def test_it_computes_what_the_references_do(op):
    assert check(op, backends=["sim"], examples=10).worst["sim"] == 0.0


def test_its_memory_has_no_address_and_no_view_on_the_host():
    buffer = SimBackend().allocate(64)
    with pytest.raises(KernelError, match=r"\[sim\] has no addresses on the host"):
        _ = buffer.address
    with pytest.raises(KernelError, match="out of the host's reach"):
        buffer.view(graphrt.input("x", (4,)), 0)


def test_bytes_leave_and_enter_only_as_copies():
    buffer = SimBackend().allocate(8)
    data = np.arange(8, dtype=np.uint8)
    buffer.write(0, data)
    data[:] = 0
    taken = buffer.read(2, 3)
    taken[:] = 9
    assert buffer.read(0, 8).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_a_copy_past_the_end_is_an_error_with_the_numbers():
    with pytest.raises(KernelError, match=r"\[sim\] a copy of 8 bytes at 4 leaves 8 bytes"):
        SimBackend().allocate(8).write(4, np.zeros(8, np.uint8))


def test_it_cannot_read_the_hosts_memory_nor_another_devices():
    node = ops.relu(graphrt.input("x", (4,)))
    device, other = SimBackend("sim0"), SimBackend("sim1")
    for foreign in (HostBuffer.allocate(64), other.allocate(64)):
        location = {node.srcs[0]: Location(foreign, 0), node: Location(device.allocate(64), 0)}
        with pytest.raises(KernelError, match=r"\[sim0\] Tensor\(x: .* lies on (host|sim1), out of its reach"):
            device.compile(Split(device, [node], location, {}))


@pytest.mark.parametrize("host", ["cpu", "reference"])
def test_host_kernels_cannot_read_its_memory(host):
    node = ops.relu(graphrt.input("x", (4,)))
    backend = create(host, Settings.from_env({}, threads=1))
    location = {node.srcs[0]: Location(SimBackend().allocate(64), 0), node: Location(HostBuffer.allocate(64), 0)}
    with pytest.raises(KernelError, match=r"\[sim\]"):
        backend.compile(Split(backend, [node], location, {}))


def test_host_memory_that_is_poisoned_after_the_upload_is_never_read_again():
    """The weight lives on the device: whatever happens to the host's array, results stay."""
    w = W.copy()
    y = ops.mul_mat(graphrt.weight("w", w), graphrt.input("x", X.shape))
    plan = Scheduler([SimBackend(), "reference"], overrides=["w=sim"]).plan(Graph(y))
    w[:] = np.nan
    assert np.allclose(plan.run(x=X)[0], X @ W.T, atol=1e-5)


def test_a_limit_holds_for_all_buffers_alive_together():
    device = SimBackend(limit=100)
    first = device.allocate(60)
    with pytest.raises(PlacementError, match=r"\[sim\] no room for 60 bytes: 60 of 100 are taken"):
        device.allocate(60)
    del first
    assert device.used == 0
    assert device.allocate(60).nbytes == 60


def test_a_missing_op_is_named():
    answer = SimBackend(missing={"mul_mat"}).supports(product())
    assert not answer
    assert answer.reason == "sim has no kernel for mul_mat"


def test_the_clock_counts_work_by_its_longer_side_and_copies_by_the_link():
    """A product of 8,192 operations and 5,120 bytes: bound by operations on one device, by bytes on the other."""
    for flops, bandwidth, expected in ((1e6, 1e9, 8192 / 1e6), (1e9, 1e6, 5120 / 1e6)):
        device = SimBackend(flops=flops, bandwidth=bandwidth, link=1e3)
        plan = Scheduler([device, "reference"], overrides=["w=sim"]).plan(Graph(product()))
        device.clock.reset()
        plan.run(x=X)
        assert device.clock.seconds["mul_mat"] == pytest.approx(expected)
        assert device.clock.seconds["upload"] == device.clock.seconds["download"] == pytest.approx(X.nbytes / 1e3)
        assert device.clock.total == pytest.approx(expected + 2 * X.nbytes / 1e3)


def test_the_clock_reports_by_kind_the_longest_first():
    device = SimBackend(link=1e6)
    Scheduler([device, "reference"], overrides=["w=sim"]).plan(Graph(product())).run(x=X)
    kinds = [line.split(":")[0] for line in device.clock.report().splitlines()]
    assert kinds == ["upload", "download", "mul_mat"]
    assert "upload: 2 times, 4,608 bytes, 4.61e+03 µs" in device.clock.report()


def test_several_devices_pass_work_on_through_the_host():
    y = ops.mul_mat(graphrt.weight("second", W), product())
    devices = [SimBackend("sim0"), SimBackend("sim1")]
    plan = Scheduler([*devices, "reference"], overrides=["^w=sim0", "second=sim1"]).plan(Graph(y))
    assert [part.backend.name for part in plan.schedule.splits] == ["sim0", "sim1"]
    assert np.allclose(plan.run(x=X)[0], X @ W.T @ W.T, atol=1e-4)
    assert [device.clock.count["mul_mat"] for device in devices] == [1, 1]


def test_each_failure_happens_once():
    device = SimBackend(fail_kernel="mul_mat")
    plan = Scheduler([device, "reference"], overrides=["w=sim"]).plan(Graph(product()))
    with pytest.raises(KernelError, match=r"\[mul_mat\] the kernel of .* failed: a failure on demand"):
        plan.run(x=X)
    assert np.allclose(plan.run(x=X)[0], X @ W.T, atol=1e-5)
