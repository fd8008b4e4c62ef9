"""Kernel of weighted_sum against its reference."""

from graphrt import ops
from graphrt.testing import check


def test_kernel_agrees_with_the_reference():
    report = check(ops.weighted_sum, backends=["cpu"], examples=60, threads=2)
    assert not report.refused["cpu"], report
