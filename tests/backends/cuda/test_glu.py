"""Gated units over rows of a model's width: two tensors, halves of one, and halves of views."""

import pytest

from graphrt import ops
from tests.backends.cuda.on_shim import agrees, drawn


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_two_tensors_and_halves_of_one(dtype: str):
    agrees(ops.swiglu(drawn(3, 2, 704, dtype=dtype), drawn(3, 2, 704, seed=1)))
    agrees(ops.swiglu(drawn(3, 2, 704, dtype=dtype)))
    agrees(ops.geglu(drawn(5, 38, dtype=dtype)))  # halves of 19: no eights
    agrees(ops.reglu(drawn(5, 200, dtype=dtype)[:, 8:104]))
