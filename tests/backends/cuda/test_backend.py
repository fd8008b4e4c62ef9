"""What the backend says where something is missing: a GPU, CuPy, memory, a kernel."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import graphrt
from graphrt import Scheduler, ops
from graphrt.backends.cuda import CudaBackend, cupy_device
from graphrt.backends.cuda.memory import address_of
from graphrt.backends.cuda.shim_device import ShimDevice
from graphrt.buffer import HostBuffer, Location
from graphrt.errors import KernelError, PlacementError, SettingsError
from graphrt.testing import check

without_gpu = pytest.mark.skipif(not cupy_device.probe(), reason="there is a GPU here")


@without_gpu
@pytest.mark.parametrize("name", ["cuda", "cuda0", "cuda1"])
def test_no_gpu_is_told_with_a_remedy(name):
    with pytest.raises(PlacementError, match=r"\[cuda\] .*(install|driver)"):
        Scheduler([name, "cpu"])


@without_gpu
def test_a_check_of_all_backends_says_which_cannot_start():
    report = check(ops.silu, examples=3)
    assert report.ran["cpu"] > 0
    assert "install" in report.absent["cuda"]
    assert "cuda: absent: [cuda]" in str(report)


def test_without_cupy_the_probe_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "CuPy cannot be imported" in cupy_device.probe()
    assert "graphrt[cuda12]" in cupy_device.probe()


def test_only_backends_of_several_devices_have_numbers():
    with pytest.raises(SettingsError, match='no backend is called "cpu1"'):
        Scheduler(["cpu1"])


def test_no_memory_is_an_error_with_numbers_and_a_remedy():
    backend = CudaBackend(ShimDevice(limit=1 << 20))
    kept = backend.allocate(900_000)
    with pytest.raises(PlacementError, match=r"no room for 200,000 bytes.*900,000 are taken.*exps=cpu"):
        backend.allocate(200_000)
    del kept
    backend.allocate(200_000)


def test_a_weight_that_does_not_fit_is_named_before_anything_runs():
    w = graphrt.weight("blk.0.ffn_up_exps.weight", np.ones((512, 1024), np.float32))
    y = ops.mul_mat(w, graphrt.input("x", (1, 1024)))
    with pytest.raises(PlacementError, match=r"blk\.0\.ffn_up_exps\.weight"):
        Scheduler([CudaBackend(ShimDevice(limit=1 << 20)), "cpu"], overrides=[".=cuda"]).plan(y)


def test_memory_of_the_host_is_out_of_reach():
    x = graphrt.constant("x", np.ones(4, np.float32))
    with pytest.raises(KernelError, match="out of reach"):
        address_of(Location(HostBuffer.of_leaf(x), 0))


def test_a_copy_past_the_end_is_refused():
    buffer = CudaBackend(ShimDevice()).allocate(64)
    with pytest.raises(KernelError, match="a copy of 16 bytes at 56 leaves 64 bytes"):
        buffer.write(56, np.zeros(16, np.uint8))


def test_exps_on_the_cpu_moves_exactly_the_expert_products(capsys):
    x, ids = graphrt.input("x", (1, 64)), graphrt.constant("ids", np.array([[1, 0]], np.int32))
    weights = {
        name: graphrt.weight(f"blk.0.{name}.weight", np.ones(shape, np.float32))
        for name, shape in (("ffn_up", (64, 64)), ("ffn_up_exps", (2, 64, 64)))
    }
    up = ops.silu(ops.mul_mat(weights["ffn_up"], x))
    experts = ops.mul_mat_id(weights["ffn_up_exps"], up.reshape(1, 1, 64), ids)
    y = ops.silu(ops.add(experts, up.reshape(1, 1, 64)))
    overrides = ["exps=cpu", ".=cuda"]
    scheduler = Scheduler([CudaBackend(ShimDevice()), "cpu"], overrides=overrides, sched_debug=2, threads=1)
    (out,) = scheduler.plan(y).run(x=np.full((1, 64), 0.01, np.float32))
    (expected,) = Scheduler(["reference"]).plan(y).run(x=np.full((1, 64), 0.01, np.float32))
    np.testing.assert_allclose(out, expected, rtol=1e-5)
    explained = scheduler.schedule(y).explain()
    products = [node for part in explained.splits for node in part.nodes if node.op.startswith("mul_mat")]
    assert {node.op: node.backend for node in products} == {"mul_mat": "cuda", "mul_mat_id": "cpu"}
    told = capsys.readouterr().err
    assert 'override "exps=cpu"' in told
    assert "split #1: cpu, 4 nodes, 1 input copied" in told
    assert "stays with its neighbour mul_mat_id_0" in told
