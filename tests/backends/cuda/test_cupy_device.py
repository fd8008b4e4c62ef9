"""CupyDevice over a stand-in for CuPy that does everything as late as it may: order, capture, errors, no GPU needed."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import graphrt
from graphrt import Graph, KernelError, PlacementError, Scheduler, ops
from graphrt.backends.cuda import CudaBackend, create
from graphrt.backends.cuda.cupy_device import CupyDevice
from graphrt.models.batch import Batch
from graphrt.numerics import normalised_error
from graphrt.settings import Settings
from tests.backends.cuda.late_cupy import Gpu, install
from tests.backends.cuda.on_shim import on_reference, results
from tests.backends.cuda.test_attention import attention
from tests.backends.cuda.test_models import PLACES, greedy, load
from tests.core.test_copy_queue import WEIGHTS, chain
from tests.core.test_copy_queue import X as ROWS

X = np.linspace(-2, 2, 4096, dtype=np.float32)


def opened(monkeypatch: pytest.MonkeyPatch, **gpu: Any) -> tuple[CudaBackend, Gpu]:
    found = Gpu(**gpu)
    install(monkeypatch, found)
    return CudaBackend(CupyDevice.open(0)), found


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["tiny-mixtral", "tiny-deepseek2"])
def test_models_write_the_cpus_tokens_however_late_the_device_is(name, place, monkeypatch):
    backend, _ = opened(monkeypatch)
    expected = greedy(graphrt.load(name, n_ctx=128, threads=1), 3)
    assert greedy(load(name, backend, PLACES[place]), 3) == expected


@pytest.mark.parametrize("name", ["tiny-mixtral", "tiny-deepseek2"])
def test_copies_beside_a_split_that_come_as_early_as_they_may_disturb_nothing(name, monkeypatch):
    backend, _ = opened(monkeypatch, eager_copies=True)
    expected = greedy(graphrt.load(name, n_ctx=128, threads=1), 3)
    assert greedy(load(name, backend, PLACES["experts on the CPU, offloaded"]), 3) == expected


@pytest.mark.parametrize("eager", [False, True], ids=["late", "early"])
def test_weights_that_take_turns_in_the_same_room_wait_for_each_other(eager, monkeypatch):
    backend, _ = opened(monkeypatch, eager_copies=eager)
    plan = Scheduler([backend, "cpu"], op_offload_min_batch=1).plan(chain())
    queued = [copy for copy in plan.schedule.copies.all() if copy.is_queued]
    assert len({plan.schedule.memory.offsets[copy] for copy in queued}) < len(queued)
    assert np.allclose(plan.run(x=ROWS)[0], np.linalg.multi_dot([ROWS, *(w.T for w in WEIGHTS)]), atol=1e-3)


def test_a_step_is_one_launch_of_one_graph(monkeypatch):
    backend, gpu = opened(monkeypatch)
    context = load("tiny-mixtral", backend, PLACES["everything on the device"]).new_context()
    context.decode(Batch.of([40, 41]))
    graphs, kernels = gpu.graphs_launched, gpu.kernels_launched
    context.decode(Batch.of([42], 2))
    captured = gpu.kernels_launched - kernels
    for position in range(3, 6):
        context.decode(Batch.of([42], position))
    assert gpu.graphs_launched - graphs == 4
    assert gpu.kernels_launched - kernels == captured, "kernels are launched for the capture alone"


def test_other_threads_go_on_while_launches_are_captured(monkeypatch):
    backend, gpu = opened(monkeypatch)
    buffer, x = backend.allocate(X.nbytes), graphrt.input("x", X.shape)

    def write(values: np.ndarray) -> None:
        thread = threading.Thread(target=buffer.write, args=(0, values.view(np.uint8)))
        thread.start()
        thread.join()

    gpu.meanwhile = lambda: write(X)
    plan = Scheduler([backend], node_overrides=["relu=cuda"]).plan(Graph(ops.relu(x)))
    assert buffer.read(0, X.nbytes).tobytes() == X.tobytes()
    write(2 * X)
    assert np.array_equal(plan.run(x=X)[0], np.maximum(X, 0))
    assert buffer.read(0, X.nbytes).tobytes() == (2 * X).tobytes(), "the graph has others' copies in it"


@pytest.mark.parametrize("widths", [(1200, 800), (800, 1200)])
def test_a_kernel_has_shared_memory_for_the_largest_of_its_launches(widths, monkeypatch):
    backend, _ = opened(monkeypatch)
    nodes = [attention(1, (1, 1), width, 10, "f32") for width in widths]
    for got, expected in zip(results(backend, nodes), on_reference(*nodes), strict=True):
        assert normalised_error(got, expected) <= ops.attention.tolerance_of(nodes[0])


def test_launches_that_cannot_be_captured_are_begun_one_by_one_and_that_is_said(monkeypatch, capsys):
    backend, gpu = opened(monkeypatch, capturable=False)
    x = graphrt.input("x", X.shape)
    plan = Scheduler([backend], node_overrides=["relu|silu=cuda"], sched_debug=3).plan(Graph(ops.silu(ops.relu(x))))
    assert "launches one by one, since they could not be captured" in capsys.readouterr().err
    (got,) = plan.run(x=X)
    assert np.allclose(got, np.maximum(X, 0) / (1 + np.exp(-np.maximum(X, 0))), atol=1e-6)
    assert gpu.graphs_launched == 0


def test_inputs_may_be_written_again_while_the_device_still_works(monkeypatch):
    backend, _ = opened(monkeypatch)
    x = graphrt.input("x", X.shape)
    plan, pipeline = (
        Scheduler([backend], node_overrides=["relu=cuda"]).plan(Graph(ops.relu(x))),
        graphrt.Pipeline(depth=2),
    )
    for sign in (1, -1):
        pipeline.submit(plan, x=sign * X)
        plan.input("x")[...] = np.nan
    for sign in (1, -1):
        assert np.array_equal(pipeline.result()[0], np.maximum(sign * X, 0))


def test_no_memory_is_an_error_with_numbers_and_the_device_goes_on(monkeypatch):
    backend, gpu = opened(monkeypatch, total=(256 << 20) + (1 << 20))
    assert backend.limit == 1 << 20
    others = gpu.modules()["cupy"].cuda.Memory(gpu.total - 100_000)
    with pytest.raises(PlacementError, match=r"late has 98,144 of 269,484,032 bytes free .*can have 100,000") as error:
        Scheduler([backend, "cpu"], overrides=["w=cuda"]).plan(product(200))
    assert 'it would fit with ".=cpu"' in str(error.value)
    del others
    plan = Scheduler([backend, "cpu"], overrides=["w=cuda"]).plan(product(200))
    assert np.allclose(plan.run(x=np.ones((1, 256), np.float32))[0], 256)


def product(rows: int) -> graphrt.Tensor:
    return ops.mul_mat(graphrt.weight("w", np.ones((rows, 256), np.float32)), graphrt.input("x", (1, 256)))


def test_without_pinned_memory_runs_go_on_and_offload_says_what_lacks(monkeypatch):
    backend, _ = opened(monkeypatch, most_pinned=0)
    plan = Scheduler([backend, "cpu"], overrides=["w=cuda"]).plan(product(200))
    assert np.allclose(plan.run(x=np.ones((1, 256), np.float32))[0], 256)
    plan = Scheduler([backend, "cpu"], overrides=["w=cpu"], op_offload_min_batch=1).plan(product(300))
    with pytest.raises(
        KernelError, match=r"w \(307,200 bytes\) from host to cuda failed: no room for .* pinned memory"
    ):
        plan.run(x=np.ones((1, 256), np.float32))


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    opened(monkeypatch)
    with pytest.raises(PlacementError, match="there is no GPU 1; the driver finds 1, counted from 0"):
        create(Settings.from_env({}), device=1)
