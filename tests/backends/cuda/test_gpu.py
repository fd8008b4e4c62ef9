"""On an NVIDIA GPU (make test-gpu): every op, over poisoned memory, and models; as the same tests through the shim.

GRAPHRT_EXAMPLES is the number of cases of each op.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

import graphrt
from graphrt import Graph, Op, Scheduler, ops
from graphrt.backends.cuda import CudaBackend, attention_shapes, cupy_device, products_wgmma, registry
from graphrt.backends.cuda.blocks import QUANTIZED
from graphrt.backends.cuda.hardware import made_for
from graphrt.errors import PlacementError
from graphrt.numerics import normalised_error
from graphrt.testing import check
from tests.backends.cuda.on_shim import on_reference, results
from tests.backends.cuda.test_attention import latent_attention
from tests.backends.cuda.test_attention_wgmma import kernel_of
from tests.backends.cuda.test_models import MODELS, PLACES, greedy, load
from tests.backends.cuda.test_products_many import drawn, kernels_of
from tests.backends.cuda.test_random_graphs import agrees_with_the_oracle

pytestmark = pytest.mark.gpu
EXAMPLES = int(os.environ.get("GRAPHRT_EXAMPLES", "60"))
ALL = [op for op in (getattr(ops, name) for name in ops.__all__) if op.kind != "view"]


@pytest.fixture(scope="module")
def backend() -> CudaBackend:
    device = cupy_device.CupyDevice.open(0)
    allocate = device.allocate

    def poisoned(nbytes: int) -> tuple[int, object]:
        """Memory full of NaN: what a kernel leaves out shows."""
        address, memory = allocate(nbytes)
        device.upload(address, np.full(nbytes, 0xFF, np.uint8))
        device.synchronize()
        return address, memory

    device.allocate = poisoned  # type: ignore[method-assign]
    return CudaBackend(device)


@pytest.mark.parametrize("op", [op for op in ALL if registry.find(op)], ids=lambda op: op.name)
@pytest.mark.parametrize("mode", ["test", "perf"])
def test_kernels_agree_with_the_reference(backend: CudaBackend, op: Op, mode: str):
    report = check(op, backends=[backend], mode=mode, examples=EXAMPLES if mode == "test" else 20)
    assert report.ran["cuda"] > 0, f"all cases were refused: {report.refused['cuda']}"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", MODELS)
def test_models_write_the_cpus_tokens(backend: CudaBackend, name: str, place: str):
    assert greedy(load(name, backend, PLACES[place]), 16) == greedy(graphrt.load(name, n_ctx=128), 16)


def test_a_step_is_one_graph(backend: CudaBackend, capsys: pytest.CaptureFixture[str]):
    model = graphrt.load("tiny-mixtral", backends=[backend, "cpu"], gpu_layers=99, n_ctx=128, sched_debug=3)
    greedy(model, 2)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("split #") and "launches" in line]
    assert told
    assert all("a CUDA graph of" in line for line in told), told


@pytest.mark.parametrize("dtype", ["q4_0", "bf16"])
def test_long_prompts_by_cublas(backend: CudaBackend, dtype: str, capsys: pytest.CaptureFixture[str]):
    x = graphrt.input("x", (1025, 1056))
    graph = Graph([ops.mul_mat(drawn((1027, 1056), dtype), x), ops.silu(x)])
    plan = Scheduler([backend], node_overrides=[".=cuda"], sched_debug=3).plan(graph)
    launches = 2 if dtype == "bf16" else 3
    assert f"a CUDA graph of {launches} launches and 1 product by cuBLAS\n" in capsys.readouterr().err
    for seed in range(3):
        values = np.random.default_rng(seed).standard_normal(x.shape, np.float32)
        got, _ = plan.run(x=values)
        expected, _ = Scheduler(["reference"]).plan(graph).run(x=values)
        assert normalised_error(got, expected) <= 5e-4


def products_of_prompts(dtype: str, rows: int, tokens: int) -> list[graphrt.Tensor]:
    """Of one matrix by so many rows, and of experts, whose last one has none, by so many tokens."""
    experts = np.random.default_rng(0).integers(0, 7, (tokens, 2)).astype(np.int32)
    w, x, of_experts = drawn((8, 300, 1280), dtype), drawn((rows, 1280), "f32", 1), drawn((tokens, 1, 1280), "f32", 2)
    return [ops.mul_mat(w[0], x), ops.mul_mat_id(w, of_experts, graphrt.constant("ids", experts))]


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_short_prompts_in_int8(backend: CudaBackend, dtype: str):
    for node in products_of_prompts(dtype, 90, 120):
        with made_for(backend.device.hardware):
            assert f"mmq<{dtype}>" in kernels_of(node)
        (first,), (expected,) = results(backend, [node]), on_reference(node)
        assert normalised_error(first, expected) <= node.op.tolerance_of(node)
        for _ in range(5):  # what is not waited for need not show in every run
            (got,) = results(backend, [node])
            np.testing.assert_array_equal(got, first)


@pytest.mark.parametrize("dtype", products_wgmma.DTYPES)
def test_prompts_by_wgmma(backend: CudaBackend, dtype: str, monkeypatch: pytest.MonkeyPatch):
    if not backend.device.hardware.has_wgmma:
        pytest.skip(f"{backend.device.name} has no wgmma, which compute capability 9.0 brings")
    for node in products_of_prompts(dtype, 700, 400):
        with made_for(backend.device.hardware):
            assert f"gemm_wgmma<{dtype}>" in kernels_of(node)
        (expected,) = on_reference(node)
        for _ in range(5):  # what is not waited for need not show in every run
            (got,) = results(backend, [node])
            assert normalised_error(got, expected) <= node.op.tolerance_of(node)
        with monkeypatch.context() as patch:
            patch.setattr(products_wgmma, "DTYPES", ())
            with made_for(backend.device.hardware):
                in_bf16 = any(kernel.startswith("gemm<") for kernel in kernels_of(node))
            (by_mma,) = results(backend, [node])
        assert normalised_error(got, by_mma) <= (1e-5 if in_bf16 else node.op.tolerance_of(node))


@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize(("tokens", "heads"), [(3, 128), (200, 16)])
def test_latents_by_wgmma(backend: CudaBackend, tokens: int, heads: int, dtype: str, monkeypatch: pytest.MonkeyPatch):
    if not backend.device.hardware.has_wgmma:
        pytest.skip(f"{backend.device.name} has no wgmma, which compute capability 9.0 brings")
    node = latent_attention(tokens, heads, 1500, dtype)
    assert kernel_of(node, backend.device.hardware).startswith("attend_wgmma")
    (expected,) = on_reference(node)
    for _ in range(5):  # what is not waited for need not show in every run
        (got,) = results(backend, [node])
        assert normalised_error(got, expected) <= node.op.tolerance_of(node)
    monkeypatch.setattr(attention_shapes, "WIDEST_KEY", 0)
    assert kernel_of(node, backend.device.hardware).startswith("attend_tiles")
    (by_mma,) = results(backend, [node])
    assert normalised_error(got, by_mma) <= node.op.tolerance_of(node)


def test_no_memory_is_an_error_that_names_what_fits(backend: CudaBackend):
    with pytest.raises(PlacementError, match=r"no room for .* bytes free"):
        backend.allocate(1 << 45)
    x = graphrt.input("x", (4,))
    (out,) = Scheduler([backend], node_overrides=["silu=cuda"]).plan(Graph([ops.silu(x)])).run(x=np.ones(4, np.float32))
    np.testing.assert_allclose(out, 1 / (1 + np.exp(-1.0)), rtol=1e-6)


def test_random_graphs(backend: CudaBackend):
    for seed in range(300):
        agrees_with_the_oracle(backend, seed)
