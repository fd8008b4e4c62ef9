"""Functions of one element where they are hard: far from zero, infinite, NaN."""

import numpy as np
import pytest

from graphrt import Op, ops
from graphrt.backends.cuda.unary import OPS
from tests.backends.cuda.on_shim import leaf, on_cuda, on_reference

HARD = [
    0.0,
    -0.0,
    1e-30,
    -1e-30,
    5.0,
    -5.0,
    -9.0,
    40.0,
    -40.0,
    88.0,
    -88.0,
    500.0,
    -500.0,
    np.inf,
    -np.inf,
    np.nan,
    1.0,
]


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_hard_values(op: Op):
    x = leaf(HARD)
    (got,), (expected,) = on_cuda(op(x)), on_reference(op(x))
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-15)


def test_values_of_a_whole_layer():
    x = leaf(np.linspace(-20, 20, 3 * 1416).reshape(3, 1416), "bf16")
    (got,), (expected,) = on_cuda(ops.silu(x)), on_reference(ops.silu(x))
    np.testing.assert_allclose(got.astype(np.float32), expected.astype(np.float32), rtol=2**-7)
