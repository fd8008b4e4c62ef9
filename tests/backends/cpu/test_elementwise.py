"""Kernels of elementwise, unary and gated ops against their references."""

import pytest

from graphrt import ops
from graphrt.testing import check

ELEMENTWISE = [ops.add, ops.sub, ops.mul, ops.div, ops.scale, ops.clamp, ops.fill]
UNARY = [
    ops.silu,
    ops.sigmoid,
    ops.gelu,
    ops.relu,
    ops.tanh,
    ops.softplus,
    ops.sqrt,
    ops.sqr,
    ops.exp,
    ops.neg,
]
GATED = [ops.swiglu, ops.geglu, ops.reglu]


@pytest.mark.parametrize("op", [*ELEMENTWISE, *UNARY, *GATED], ids=lambda op: op.name)
def test_kernel_agrees_with_the_reference(op):
    report = check(op, backends=["cpu"], examples=80, threads=2)
    assert not report.refused["cpu"], report
