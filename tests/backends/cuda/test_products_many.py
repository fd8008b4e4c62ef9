"""Products with many rows: ragged tiles of every weight, parts of k, lists of experts' rows, what is not finite."""

from __future__ import annotations

import random

import numpy as np
import pytest

import graphrt
from graphrt import dtypes, ops
from graphrt.backends.cuda import CudaBackend, products_many
from graphrt.backends.cuda.hardware import Hardware, made_for
from graphrt.backends.cuda.shim_device import ShimDevice
from graphrt.numerics import normalised_error
from graphrt.testing import Draw
from tests.backends.cuda.on_shim import on_cuda, on_reference, results

ORDERS = (0, 1, 7)


def drawn(shape, dtype, seed=0):
    leaf = Draw(random.Random(seed).randint).tensor(shape, dtypes.get(dtype), layout="dense")
    return graphrt.weight(f"drawn_{seed}", leaf.data)


def agrees(node, order=0):
    assert products_many.takes(node)
    (got,), (expected,) = on_cuda(node, order=order), on_reference(node)
    return normalised_error(got, expected) <= node.op.tolerance_of(node)


def kernels_of(node):
    return [launch.kernel.expression for launch in products_many.launches(node)]


# Each K makes more than one chunk, and none of them ends with one.
def width_of(dtype):
    return 768 if dtypes.get(dtype).block == 256 else 544


@pytest.mark.parametrize("dtype", products_many.DIRECT)
def test_rows_of_weights_begin_and_end_anywhere(dtype):
    w = drawn((75, width_of(dtype)), dtype)[3:]
    node = ops.mul_mat(w, drawn((21, width_of(dtype)), "f32", seed=1))
    by_int8 = ["quantize", f"mmq<{dtype}>"]
    assert kernels_of(node) == (["rows_to_bf16", f"gemm<{dtype}, 64>"] if dtype in products_many.PLAIN else by_int8)
    assert agrees(node)


@pytest.mark.parametrize("dtype", products_many.IN_WIDE_TILES)
def test_wide_tiles(dtype):
    node = ops.mul_mat(drawn((150, width_of(dtype)), dtype), drawn((140, width_of(dtype)), "f32", seed=1))
    with made_for(Hardware(processors=1)):
        assert kernels_of(node)[-1] == f"gemm<{dtype}, 128>"
        assert agrees(node)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", ["bf16", "f32", "q4_k"])
def test_parts_of_k_are_added_up(dtype, order):
    node = ops.mul_mat(drawn((40, 2048), dtype), drawn((2, 9, 2048), "f32", seed=1))
    assert kernels_of(node)[-1] == "sum_parts"
    assert agrees(node, order)


@pytest.mark.parametrize("offset", [1, 3, 8])
def test_plain_weights_at_any_address(offset):
    w = drawn((20, 128), "f16")[:, offset : offset + 96]
    node = ops.mul_mat(w, drawn((33, 96), "bf16", seed=1))
    assert ("gemm<f16, 64>" in kernels_of(node)) == (offset == 8)
    assert agrees(node)


@pytest.mark.parametrize("dtype", ["f16", "f32"])
def test_weights_and_rows_that_lie_across(dtype):
    w, x = drawn((2, 96, 40), dtype), drawn((2, 96, 33), "f32", seed=1)
    assert agrees(ops.mul_mat(w.permute(0, 2, 1), x.permute(0, 2, 1)))


@pytest.mark.parametrize("dtype", ["bf16", "f32", "q4_k"])
def test_transposed_weights(dtype):
    assert agrees(ops.mul_mat_transposed(drawn((3, 50, 256), dtype), drawn((3, 17, 50), "f32", seed=1)))


def product_of_experts(ids, experts, dtype="q4_0", rows=70, used=None):
    ids = np.asarray(ids, np.int32)
    x = drawn((ids.shape[0], used or ids.shape[1], 64), "f32", seed=1)
    return ops.mul_mat_id(drawn((experts, rows, 64), dtype), x, graphrt.constant("ids", ids))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("experts", [1, 2, 40])
def test_experts_with_any_number_of_rows(experts, order):
    generator = np.random.default_rng(experts)
    ids = np.minimum(generator.geometric(0.3, (150, 2)) - 1, experts - 1)  # the first is asked most, the last hardly
    node = product_of_experts(ids, experts, rows=130, used=1)
    assert ("gemm<q4_0, 128>" in kernels_of(node)) == (experts < 5)
    assert agrees(node, order)


def test_every_token_goes_to_the_last_expert():
    assert agrees(product_of_experts(np.full((80, 1), 6), 7))


def test_an_expert_that_is_not_there_gives_nan():
    ids = np.random.default_rng(0).integers(0, 3, (30, 2))
    (expected,) = on_cuda(product_of_experts(ids, 3))
    wrong = np.zeros_like(ids, bool)
    wrong[[0, 7, 7, 29], [1, 0, 1, 0]] = True
    on_zeros = CudaBackend(ShimDevice(guarded=True, checked=True))
    (got,) = results(on_zeros, [product_of_experts(np.where(wrong, [[-1, 3]], ids), 3)])
    assert np.isnan(got[wrong]).all()
    np.testing.assert_array_equal(got[~wrong], expected[~wrong])


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_what_is_not_finite_stays_so(dtype):
    w, x = drawn((20, 64), dtype), drawn((16, 64), "f32", seed=1)
    w.data[3, 5], w.data[4, 6], w.data[5, 7] = np.inf, -np.inf, np.nan
    x.data[2, 9], x.data[3, 10], x.data[4, 5] = np.inf, np.nan, -np.inf
    (got,), (expected,) = on_cuda(ops.mul_mat(w, x)), on_reference(ops.mul_mat(w, x))
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(expected))
    np.testing.assert_array_equal(got[~np.isfinite(got)], expected[~np.isfinite(got)])


def test_few_rows_are_left_to_others():
    w = drawn((8, 32), "q8_0")
    assert not products_many.takes(ops.mul_mat(w, drawn((8, 32), "f32", seed=1)))
    assert products_many.takes(ops.mul_mat(w, drawn((3, 3, 32), "f32", seed=1)))  # one matrix for all batches
    assert products_many.takes(ops.mul_mat(drawn((8, 32), "q5_1"), drawn((4, 32), "f32", seed=1)))  # a rare dtype
    assert not products_many.takes(ops.mul_mat(drawn((3, 8, 32), "q8_0"), drawn((3, 3, 32), "f32", seed=1)))
