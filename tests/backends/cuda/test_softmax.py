"""Distributions and sums of rows that take a warp, a block, and more than a block holds."""

import numpy as np
import pytest

from graphrt import ops
from tests.backends.cuda.on_shim import agrees, drawn, leaf, on_cuda


@pytest.mark.parametrize("length", [64, 300, 8193])
def test_rows_of_a_length_with_mask_and_sinks(length: int):
    x = drawn(2, 3, length)
    agrees(ops.soft_max(x, drawn(3, length, dtype="f16", seed=1), drawn(2, seed=2), scale=3.0))
    agrees(ops.soft_max(x))
    agrees(ops.sum_rows(leaf(np.random.default_rng(0).random((5, length)), "bf16")))


def test_hidden_rows_give_zeros_and_nan_stays_in_its_row():
    x = np.zeros((4, 9), np.float32)
    x[1], x[2, 3] = -np.inf, np.nan
    (got,) = on_cuda(ops.soft_max(leaf(x)))
    np.testing.assert_array_equal(got[1], np.zeros(9))
    assert np.isnan(got[2]).all()
    np.testing.assert_allclose(got[[0, 3]], 1 / 9, rtol=1e-6)
