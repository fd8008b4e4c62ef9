"""Order of rows that a warp ranks, that a block sorts, and of several runs that are merged."""

import numpy as np
import pytest

from graphrt import ops
from graphrt.ops.sort import order_of
from tests.backends.cuda.on_shim import drawn, leaf, on_cuda

HARD = [1, np.nan, 0.0, -0.0, np.inf, -np.inf, 1, np.nan, -2, 1e-40, -1e-40, 0.0]


@pytest.mark.parametrize(
    ("rows", "length", "k"), [(7, 128, 8), (3, 129, 129), (2, 256, 8), (2, 4097, 9), (1, 12500, 12500)]
)
def test_ties_and_special_values_keep_their_order(rows: int, length: int, k: int):
    x = np.random.default_rng(length).choice(HARD, (rows, length)).astype(np.float32)
    best, rising = on_cuda(ops.top_k(leaf(x), k=k), ops.argsort(leaf(x)))
    np.testing.assert_array_equal(best, order_of(x, True)[:, :k])
    np.testing.assert_array_equal(rising, order_of(x, False))


def test_rows_of_a_transposed_view():
    x = drawn(300, 3, dtype="bf16")
    (got,) = on_cuda(ops.argsort(x.permute(1, 0), descending=True))
    assert x.data is not None
    np.testing.assert_array_equal(got, order_of(x.data.T, True))
