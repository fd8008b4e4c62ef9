import numpy as np
import pytest

import graphrt
from graphrt import dtypes, ops
from graphrt.testing import random_blocks
from tests.ops.evaluate import close, drawn, leaf, refuses, run, values


def test_by_hand():
    w, x = leaf([[1, 2], [3, 4], [5, 6]]), leaf([[1, 10]])
    np.testing.assert_array_equal(run(ops.mul_mat(w, x)), [[21, 43, 65]])
    np.testing.assert_array_equal(run(ops.mul_mat_transposed(w, leaf([[1, 10, 100]]))), [[531, 642]])


BATCHES = [((), ()), ((3,), ()), ((), (3,)), ((2, 1), (3,)), ((1, 3), (2, 1)), ((2, 3), (2, 3)), ((0,), (1,))]


@pytest.mark.parametrize(("w_batch", "x_batch"), BATCHES)
def test_batch_axes_broadcast_both_ways(w_batch, x_batch):
    w, x = drawn(*w_batch, 4, 5), drawn(*x_batch, 2, 5, seed=1)
    close(run(ops.mul_mat(w, x)), np.einsum("...mk,...nk->...nm", values(w), values(x)), 1e-5)
    y = drawn(*x_batch, 2, 4, seed=2)
    close(run(ops.mul_mat_transposed(w, y)), np.einsum("...mk,...nm->...nk", values(w), values(y)), 1e-5)


@pytest.mark.parametrize("x_dtype", ["f32", "f16", "bf16", "q8_0", "q4_1"])
@pytest.mark.parametrize("w_dtype", [*dtypes.FLOATS, *dtypes.QUANTIZED], ids=str)
def test_any_dtype_on_either_side(w_dtype, x_dtype):
    if w_dtype.is_quantized:
        array = random_blocks(np.random.default_rng(0), (3, 256), w_dtype)
    else:
        array = np.random.default_rng(0).standard_normal((3, 256)).astype(w_dtype.numpy)
    w, x = graphrt.weight("w", array), drawn(2, 256, dtype=x_dtype)
    node = ops.mul_mat(w, x)
    assert node.dtype is dtypes.f32
    close(run(node), values(x) @ values(w).T, 1e-3)
    x = drawn(2, 32, dtype=x_dtype)
    w = graphrt.weight("w", np.repeat(array, 11, axis=0)[:32])
    close(run(ops.mul_mat_transposed(w, x)), values(x) @ values(w), 1e-3)


def test_16_bit_products_do_not_overflow():
    w = leaf(np.full((1, 4), 60000.0), "f16")
    np.testing.assert_array_equal(run(ops.mul_mat(w, leaf(np.full((1, 4), 4.0), "f16"))), [[960000]])


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_empty_axes(shape):
    rows, outputs, width = shape
    got = run(ops.mul_mat(drawn(outputs, width), drawn(rows, width)))
    np.testing.assert_array_equal(got, np.zeros((rows, outputs)) if not width else got)
    assert got.shape == (rows, outputs)


def test_cost_counts_broadcast_batches():
    cost = ops.mul_mat.cost_of(ops.mul_mat(drawn(3, 1, 4, 5), drawn(2, 6, 5)))
    assert cost.flops == 2 * (3 * 2) * 6 * 4 * 5
    assert cost.batch == 6
    assert cost.nbytes == 4 * (3 * 4 * 5 + 2 * 6 * 5 + 3 * 2 * 6 * 4)


def test_tolerance_is_strict_for_f32_only():
    f32, f16 = drawn(2, 32), drawn(2, 32, dtype="f16")
    assert ops.mul_mat.tolerance_of(ops.mul_mat(f32, f32)) == 1e-7
    assert ops.mul_mat.tolerance_of(ops.mul_mat(f16, f32)) == 5e-4


def test_refusals():
    w = drawn(4, 5)
    refuses(
        r"\[mul_mat\] the last axes of w f32 \[4, 5\] and x f32 \[2, 4\] must agree",
        lambda: ops.mul_mat(w, drawn(2, 4)),
    )
    refuses(r"\[mul_mat_transposed\] the last axis of x f32 \[2, 5\]", lambda: ops.mul_mat_transposed(w, drawn(2, 5)))
    refuses(r"\[mul_mat\] x must be \[B..., N, K\], got f32 \[5\]", lambda: ops.mul_mat(w, drawn(5)))
    refuses(
        r"\[mul_mat\] the batch axes of w and x \[2\] and \[3\] do not",
        lambda: ops.mul_mat(drawn(2, 4, 5), drawn(3, 1, 5)),
    )
    refuses(r"\[mul_mat\] w must be one of f32, .*, got i32", lambda: ops.mul_mat(leaf([[1]], "i32"), drawn(1, 1)))
