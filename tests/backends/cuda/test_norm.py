"""Norms of rows of all lengths: a part of a warp, a warp, a block, more than a block holds, aligned and not."""

import numpy as np
import pytest

from graphrt import ops
from tests.backends.cuda.on_shim import agrees, drawn, leaf, on_cuda


@pytest.mark.parametrize("length", [1, 8, 128, 256, 264, 4096, 4097, 8200])
def test_rows_of_a_length(length: int):
    agrees(ops.rms_norm(drawn(5, length), drawn(length, seed=1)))
    agrees(ops.rms_norm(drawn(2, length, dtype="bf16")))


def test_views_and_weights_that_are_not_aligned():
    wide = drawn(6, 3, 160)
    agrees(ops.rms_norm(wide[:, :, 32:], drawn(129, seed=1)[1:]))
    agrees(ops.rms_norm(wide.permute(1, 2, 0), drawn(6, dtype="f16")))


def test_nan_stays_in_its_row():
    x = np.ones((5, 40), np.float32)
    x[2, 7] = np.nan
    (got,) = on_cuda(ops.rms_norm(leaf(x)))
    np.testing.assert_array_equal(np.isnan(got).all(axis=-1), [False, False, True, False, False])
    np.testing.assert_array_equal(np.isnan(got).any(axis=-1), [False, False, True, False, False])
