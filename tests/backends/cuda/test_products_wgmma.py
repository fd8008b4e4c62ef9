"""Products with many rows on tensor cores of compute capability 9.0: every weight, ragged tiles, parts, experts."""

from __future__ import annotations

import numpy as np
import pytest

import graphrt
from graphrt import ops
from graphrt.backends.cuda import CudaBackend, products_many, products_wgmma
from graphrt.backends.cuda.hardware import Hardware, made_for
from graphrt.backends.cuda.shim_device import ShimDevice
from graphrt.testing import check
from tests.backends.cuda.on_shim import on_cuda
from tests.backends.cuda.test_products_many import agrees, drawn, kernels_of, width_of

ORDERS = (0, 1, 7)
HOPPER = Hardware(processors=1, has_wgmma=True)


@pytest.fixture(autouse=True)
def _hopper():
    with made_for(HOPPER):
        yield


def test_other_devices_and_short_prompts_keep_to_mma():
    w, long, short = drawn((128, 512), "q4_0"), drawn((128, 512), "f32", seed=1), drawn((127, 512), "f32", seed=1)
    assert kernels_of(ops.mul_mat(w, long)) == ["x_to_tiles", "gemm_wgmma<q4_0>"]
    assert kernels_of(ops.mul_mat(w, short))[1].startswith("gemm<")
    assert kernels_of(ops.mul_mat(w[:, :96], long[:, :96]))[1].startswith("gemm<")  # no whole steps of 64
    with made_for(Hardware(processors=1)):
        assert kernels_of(ops.mul_mat(w, long))[1].startswith("gemm<")


@pytest.mark.parametrize("dtype", products_wgmma.DTYPES)
def test_ragged_tiles_of_every_weight(dtype):
    width = width_of(dtype) + (32 if width_of(dtype) % 64 else 0)
    node = ops.mul_mat(drawn((142, width), dtype)[3:], drawn((140, width), "f32", seed=1))
    assert kernels_of(node)[-1] == f"gemm_wgmma<{dtype}>"
    assert agrees(node, order=7)


@pytest.mark.parametrize("columns", [128, 150, 192, 220, 250, 300])
def test_instructions_of_every_width(columns):
    node = ops.mul_mat(drawn((70, 256), "q4_0"), drawn((columns, 256), "f32", seed=1))
    assert agrees(node, order=columns % 3)


@pytest.mark.parametrize(("dtype", "order"), [("bf16", 0), ("q8_0", 1), ("q4_0", 7)])
def test_parts_of_k_are_added_up(dtype, order):
    node = ops.mul_mat(drawn((40, 2112), dtype), drawn((130, 2112), "f32", seed=1))
    with made_for(Hardware(processors=8, has_wgmma=True)):
        assert kernels_of(node) == ["x_to_tiles", f"gemm_wgmma<{dtype}>", "sum_parts"]
        assert agrees(node, order)


@pytest.mark.parametrize("order", ORDERS)
def test_many_tiles_of_one_step(order):
    """Those that bring operands are two tiles ahead of those that multiply."""
    assert agrees(ops.mul_mat(drawn((1000, 64), "q8_0"), drawn((128, 64), "f32", seed=1)), order)


def test_tiles_of_other_rows_of_x_one_after_the_other():
    """Some warps store by the tables of a tile while others begin with the next."""
    node = ops.mul_mat(drawn((400, 128), "q8_0"), drawn((600, 128), "f32", seed=1))
    with made_for(Hardware(processors=1, has_wgmma=True)):
        assert all(agrees(node, order) for order in range(2, 10))


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_weights_that_become_bf16_first(dtype):
    w, x = drawn((2, 64, 40), dtype), drawn((2, 130, 64), "f32", seed=1)
    node = ops.mul_mat(w.permute(0, 2, 1), x)
    assert kernels_of(node) == ["x_to_tiles", "rows_to_bf16", "gemm_wgmma<bf16>"]
    assert agrees(node)


def product_of_experts(ids, experts, used=None):
    ids = np.asarray(ids, np.int32)
    x = drawn((ids.shape[0], used or ids.shape[1], 128), "f32", seed=1)
    return ops.mul_mat_id(drawn((experts, 130, 128), "q4_0"), x, graphrt.constant("ids", ids))


@pytest.mark.parametrize("order", ORDERS)
def test_experts_with_any_number_of_rows(order):
    ids = np.minimum(np.random.default_rng(0).geometric(0.5, (250, 2)) - 1, 4)
    node = product_of_experts(ids, 5, used=1)
    assert kernels_of(node)[-1] == "gemm_wgmma<q4_0>"
    with made_for(Hardware(processors=1 + order % 3, has_wgmma=True)):
        assert agrees(node, order)


def test_an_expert_that_is_not_there_gives_nan():
    ids = np.random.default_rng(0).integers(0, 2, (99, 2))
    (expected,) = on_cuda(product_of_experts(ids, 2))
    wrong = np.zeros_like(ids, bool)
    wrong[[0, 7, 7, 98], [1, 0, 1, 0]] = True
    (got,) = on_cuda(product_of_experts(np.where(wrong, [[-1, 2]], ids), 2))
    assert np.isnan(got[wrong]).all()
    np.testing.assert_array_equal(got[~wrong], expected[~wrong])


def test_nobody_is_asked():
    (got,) = on_cuda(product_of_experts(np.full((99, 2), 2), 2))
    assert np.isnan(got).all()


@pytest.mark.parametrize("experts", [[4], [0, 3]])
def test_most_experts_have_no_rows(experts):
    ids = np.random.default_rng(0).choice(experts, (260, 2))
    with made_for(Hardware(processors=2, has_wgmma=True)):
        assert agrees(product_of_experts(ids, 5, used=1))


@pytest.mark.parametrize("op", [ops.mul_mat, ops.mul_mat_id], ids=lambda op: op.name)
def test_cases_of_the_ops(op, monkeypatch):
    monkeypatch.setattr(products_wgmma, "FEWEST_ROWS", products_many.FEWEST_ROWS)
    monkeypatch.setattr(products_wgmma, "FEWEST_ROWS_OF_EXPERT", products_many.FEWEST_ROWS_OF_EXPERT)
    device = ShimDevice(guarded=True, poisoned=True, checked=True, hardware=HOPPER)
    assert check(op, backends=[CudaBackend(device)], examples=40).ran["cuda"] > 0
