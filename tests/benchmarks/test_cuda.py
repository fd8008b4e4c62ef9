"""The benchmark of the cuda backend runs, on the CPU over tiny shapes; and judges what it finds."""

from __future__ import annotations

import ctypes
import sys
import time
from math import prod
from types import SimpleNamespace

import numpy as np
import pytest

from docs.benchmarks import cuda, cuda_kernels, cuda_limits, cuda_models, cuda_weights
from docs.benchmarks.cuda_models import LITE, MIXTRAL, point, waiting
from docs.benchmarks.cuda_targets import CELLS, SEQUENCES, mla_case, targets
from graphrt import dtypes
from graphrt.backends.cuda import CudaBackend, nvrtc
from graphrt.backends.cuda.shim_device import ShimDevice


def test_dry_run_measures_every_kernel_and_a_model(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cuda", "--dry"])
    monkeypatch.setattr(cuda_limits, "REPEATS", 1)
    monkeypatch.setattr(cuda_models, "ROUNDS", 1)
    cuda.main()
    told = capsys.readouterr().out
    prompts = [f"mul_mat bf16, 16 columns, by {maker} |" for maker in cuda_kernels.MAKERS]
    prompts += [f"64 experts of 8 x 128, 16 tokens, by {maker} |" for maker in cuda_kernels.MAKERS[1:]]
    rows = ("mul_mat q4_0, 1 column |", *prompts, mla_case(128, 2, 32), "in a CUDA graph: ", "q4_0, exps=cpu |")
    assert all(row in told for row in rows)
    assert " 0.0 |" not in told.split("| model |")[1]


class FakeArray(np.ndarray):
    """An array with CuPy's attribute for its address."""

    data = property(lambda self: SimpleNamespace(ptr=self.ctypes.data))


def test_limits_are_asked_of_cupy_as_it_takes_it(monkeypatch):
    products = []

    def gemm_ex(handle, across_a, across_b, m, n, k, alpha, a, *rest):
        b, c = rest[2], rest[6]
        factors = [np.frombuffer((ctypes.c_char * 4).from_address(each), np.float32)[0] for each in (alpha, rest[5])]
        assert len(rest) == 11  # CuPy's gemmEx takes 19 arguments
        products.append((m, n, k, *factors, len({a, b, c})))

    wait = SimpleNamespace(synchronize=lambda: None)
    cuda_part = SimpleNamespace(
        Device=lambda: wait,
        device=SimpleNamespace(get_cublas_handle=lambda: 1),
        cublas=SimpleNamespace(gemmEx=gemm_ex),
    )
    fake = {
        "ones": np.ones,
        "empty_like": np.empty_like,
        "copyto": np.copyto,
        "uint8": np.uint8,
        "uint16": np.uint16,
        "cuda": cuda_part,
        "random": SimpleNamespace(randint=lambda *given: np.random.default_rng(0).integers(*given).view(FakeArray)),
    }
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(**fake))
    monkeypatch.setattr(cuda_limits, "COPIED", 1 << 12)
    monkeypatch.setattr(cuda_limits, "SIDE", 16)
    assert all(limit > 0 for limit in cuda_limits.limits().values())
    assert set(products) == {(16, 16, 16, 1.0, 0.0, 3)}


def blocks_of(array: np.ndarray, dtype: dtypes.DType) -> set[bytes]:
    return {row.tobytes() for row in array.view(np.uint8).reshape(-1, dtype.nbytes)}


@pytest.mark.parametrize("dtype", [dtypes.q4_0, dtypes.q6_k, dtypes.f16], ids=str)
def test_weights_made_on_a_device(monkeypatch, dtype):
    monkeypatch.setattr(cuda_weights, "PIECE_BYTES", 1 << 16)
    weights, shape = cuda_weights.DeviceWeights(ShimDevice(checked=True)), (3, 200, 256)
    first, second = (np.concatenate([piece.copy() for piece in weights.matrix(shape, dtype)]) for _ in range(2))
    values = dtypes.to_f32(first)
    assert values.size == prod(shape)
    assert abs(values.std() * 16 - 1) < 0.05
    assert blocks_of(first, dtype) <= blocks_of(weights._tile(dtype, 256), dtype)
    assert first.tobytes() != second.tobytes()
    half = first.nbytes // 2
    assert first.tobytes()[:half] != first.tobytes()[half : 2 * half]


def test_weights_of_a_device_compile_for_it():
    (used,) = nvrtc.compile_kernels([cuda_weights.UNIT.kernel("draw_blocks")], "90").resources.values()
    assert used.spill_bytes == 0
    assert used.registers <= cuda_weights.UNIT.registers


def found(share: float, host: float) -> dict[str, float]:
    return {"decode_share": share, "prompt_share": 0.35, "decode_tokens_per_second": 850, "host_seconds_per_step": host}


def test_results_are_judged():
    assert {target.verdict for target in targets({"kernels": {}, "models": {}})} == {"not measured"}
    kernels = {mla_case(heads, SEQUENCES, CELLS): {"bytes": 2.9e12, "flops": 249e12} for heads in (16, 128)}
    models = {point(MIXTRAL, "all"): found(0.59, 50e-6), point(LITE, "all"): found(0.1, 61e-6)}
    verdicts = [target.verdict for target in targets({"kernels": kernels, "models": models})]
    missed = [True, False, False, True, False, False, True]
    assert verdicts == ["not reached" if each else "reached" for each in missed]


def test_cases_that_are_judged_are_those_that_are_measured():
    names = [case.name for case in cuda_kernels.attention_cases(cuda.DRY)]
    assert names == [mla_case(heads, cuda.DRY.sequences, cuda.DRY.cells) for heads in (16, 128)]
    assert (cuda.REAL.sequences, cuda.REAL.cells) == (SEQUENCES, CELLS)
    assert {MIXTRAL, LITE} <= set(cuda_models.SUBJECTS)


def test_what_the_host_waits_for_is_told_apart(monkeypatch):
    backend = CudaBackend(ShimDevice())
    monkeypatch.setattr(backend.device, "synchronize", lambda: time.sleep(0.02))
    with waiting(backend) as waited:
        assert not waited
        backend.allocate(16).read(0, 8)  # begins a copy, and waits for it
        assert len(waited) == 1
        assert sum(waited) >= 0.02
        backend.record().wait()
        assert len(waited) == 2
        backend.wait_for(backend.record())  # this lets the device wait, not the host
        assert len(waited) == 2
