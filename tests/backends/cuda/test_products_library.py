"""Long prompts' products by the device's library: operands as bf16, addresses and steps, the workspace, no library."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import graphrt
from graphrt import Graph, Scheduler, dtypes, ops
from graphrt.backends.cuda import products_library, products_many
from graphrt.backends.cuda.hardware import made_for, present
from graphrt.backends.cuda.launch import SCRATCH, SCRATCH_ALIGNMENT, Gemm, Launch
from graphrt.numerics import normalised_error
from tests.backends.cuda.on_shim import agrees, on_cuda, on_reference
from tests.backends.cuda.test_cupy_device import opened
from tests.backends.cuda.test_products_many import ORDERS, drawn, width_of

MIB = 1 << 20


@pytest.fixture(autouse=True)
def lower_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products_many, "LEAST_OF_LIBRARY", 32)


def steps_of(node: graphrt.Tensor) -> list[str]:
    return [each.kernel.expression if isinstance(each, Launch) else "library" for each in products_many.launches(node)]


@pytest.mark.parametrize("dtype", products_many.DIRECT)
def test_rows_of_weights_begin_and_end_anywhere(dtype):
    node = ops.mul_mat(drawn((43, width_of(dtype)), dtype)[3:], drawn((35, width_of(dtype)), "f32", seed=1))
    read_as_it_is = dtype == "bf16"
    assert steps_of(node) == ["dense_rows_to_bf16"] * (1 if read_as_it_is else 2) + ["library"]
    agrees(node)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", ["f16", "q4_0", "q6_k"])
def test_weights_in_parts_of_their_rows(dtype, order, monkeypatch):
    monkeypatch.setattr(products_library, "MOST_EXPANDED", 256 * 2 * 256)
    node = ops.mul_mat(drawn((600, 256), dtype), drawn((2, 17, 256), "f32", seed=1))
    assert [each.rows for each in products_many.launches(node) if isinstance(each, Gemm)] == [256, 256, 88]
    (got,), (expected,) = on_cuda(node, order=order), on_reference(node)
    assert normalised_error(got, expected) <= node.op.tolerance_of(node)


@pytest.mark.parametrize(
    ("w", "x", "steps"),
    [
        (drawn((40, 96), "bf16")[:, 32:], drawn((33, 64), "bf16", seed=1), ["library"]),
        (drawn((40, 96), "bf16")[:, 4:68], drawn((33, 64), "f16", seed=1), ["dense_rows_to_bf16"] * 2 + ["library"]),
        (drawn((40, 64), "bf16"), drawn((64, 33), "f32", seed=1).permute(1, 0), ["rows_to_bf16", "library"]),
        (drawn((40, 64), "bf16"), drawn((17, 3, 64), "f32", seed=1)[:, :2], ["rows_to_bf16", "library"]),
    ],
    ids=["bf16 in longer rows", "unaligned", "x across", "x with gaps between batches"],
)
def test_layouts(w, x, steps):
    node = ops.mul_mat(w, x)
    assert steps_of(node) == steps
    agrees(node)


def test_what_is_not_finite_stays_so():
    w, x = drawn((40, 64), "bf16"), drawn((33, 64), "f32", seed=1)
    w.data[3, 5], w.data[4, 6], w.data[5, 7] = np.inf, -np.inf, np.nan
    x.data[2, 9], x.data[3, 10], x.data[4, 5] = np.inf, np.nan, -np.inf
    assert steps_of(ops.mul_mat(w, x))[-1] == "library"
    (got,), (expected,) = on_cuda(ops.mul_mat(w, x)), on_reference(ops.mul_mat(w, x))
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(expected))
    np.testing.assert_array_equal(got[~np.isfinite(got)], expected[~np.isfinite(got)])


def test_which_products_are_left_to_the_library(monkeypatch):
    monkeypatch.undo()

    def is_left(dtype, rows, *x, width=1024):
        w = graphrt.input("w", (rows, width), dtypes.get(dtype))
        return steps_of(ops.mul_mat(w, graphrt.input("x", (*x, width))))[-1] == "library"

    assert is_left("q4_0", 1024, 1024)
    assert is_left("q4_0", 1024, 4, 256)  # one matrix for all batches
    assert not is_left("q4_0", 1024, 1023)
    assert not is_left("q4_0", 1023, 1024)
    assert not is_left("q4_0", 1024, 1024, width=992)
    assert not is_left("f16", 1024, 1024, width=1040)  # no whole steps
    assert not is_left("f32", 1024, 1024)


def test_the_workspace_holds_both_operands_and_the_librarys_own(monkeypatch):
    def bytes_of(dtype, rows, width):
        x = graphrt.input("x", (1024, width))
        return products_many.workspace(ops.mul_mat(graphrt.input("w", (rows, width), dtypes.get(dtype)), x))

    library = SCRATCH + SCRATCH_ALIGNMENT
    assert bytes_of("bf16", 4096, 4096) == 8 * MIB + library
    assert bytes_of("q4_0", 14336, 4096) == 8 * MIB + 112 * MIB + library
    assert bytes_of("q4_0", 128256, 4096) <= 8 * MIB + 256 * MIB + library  # a vocabulary, in parts


def products() -> Graph:
    """Two products of one x."""
    x = graphrt.input("x", (35, 64))
    return Graph([ops.mul_mat(drawn((43, 64), "q8_0"), x), ops.mul_mat(drawn((50, 64), "f16", seed=1), x)])


def planned(backend):
    return Scheduler([backend], node_overrides=[".=cuda"], sched_debug=3).plan(products())


def assert_right(plan) -> None:
    reference = Scheduler(["reference"]).plan(products())
    for seed in (1, 2):
        x = np.random.default_rng(seed).standard_normal((35, 64), np.float32)
        for got, expected in zip(plan.run(x=x), reference.run(x=x), strict=True):
            assert normalised_error(got, expected) <= 5e-4


def test_products_are_captured_with_the_launches(monkeypatch, capsys):
    backend, gpu = opened(monkeypatch)
    plan = planned(backend)
    assert "a CUDA graph of 4 launches and 2 products by cuBLAS\n" in capsys.readouterr().err
    assert_right(plan)
    assert gpu.cublas.products == 3, "one before the capture, to try it, and two in it"


def test_products_that_cannot_be_captured_are_begun_one_by_one_and_that_is_said(monkeypatch, capsys):
    backend, gpu = opened(monkeypatch, cublas=14)
    plan = planned(backend)
    told = "4 launches and 2 products by cuBLAS one by one, since they could not be captured"
    assert (
        f"{told}: [cuda] cuBLAS answers CUBLAS_STATUS_14 to the library's product of 35 rows" in capsys.readouterr().err
    )
    assert_right(plan)
    assert gpu.graphs_launched == 0


def test_without_a_library_kernels_make_the_products_and_the_reason_is_told(monkeypatch, capsys):
    backend, _ = opened(monkeypatch, cublas=None)
    plan = planned(backend)
    reason = "cuBLAS cannot be used: libcublas.so.12 is not there\n"
    assert f"launches; products of long prompts by graphrt's own kernels, since {reason}" in capsys.readouterr().err
    assert_right(plan)


def test_a_library_whose_first_product_is_wrong_is_not_used(monkeypatch, capsys):
    monkeypatch.setattr("tests.backends.cuda.late_cublas._as_floats", lambda codes: codes.astype(np.float32))
    plan = planned(opened(monkeypatch)[0])
    told = "by graphrt's own kernels, since cuBLAS cannot be used: [cuda] cuBLAS's first product is wrong"
    assert told in capsys.readouterr().err
    assert_right(plan)


def test_short_prompts_do_not_ask_for_the_library():
    def never() -> str:
        raise AssertionError("it was asked for")

    node = ops.mul_mat(drawn((40, 64), "q8_0"), drawn((31, 64), "f32", seed=1))
    with made_for(replace(present(), without_library=never)):
        assert steps_of(node)[-1].startswith(("mmq", "sum_parts"))
