"""The small ops' kernels at every SIMD level that the machine can run."""

import pytest

from graphrt import ops
from graphrt.backends.cpu import host
from graphrt.testing import check

OPS = [
    ops.add,
    ops.clamp,
    ops.tanh,
    ops.softplus,
    ops.swiglu,
    ops.rms_norm,
    ops.soft_max,
    ops.sum_rows,
    ops.rope,
    ops.get_rows,
    ops.set_rows,
    ops.add_id,
    ops.cast,
    ops.top_k,
    ops.weighted_sum,
]


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
@pytest.mark.parametrize("level", host.levels()[1:])
def test_kernel_agrees_at_lower_levels(level, op):
    with host.use_level(level):
        report = check(op, backends=["cpu"], examples=15)
    assert not report.refused["cpu"], report
