"""Kernels that move and convert elements against their references."""

import pytest

from graphrt import ops
from graphrt.testing import check


@pytest.mark.parametrize("op", [ops.cont, ops.dup, ops.cast, ops.concat, ops.repeat], ids=lambda op: op.name)
def test_kernel_agrees_with_the_reference(op):
    report = check(op, backends=["cpu"], examples=60, threads=2)
    assert not report.refused["cpu"], report


def test_cpy_agrees_with_the_reference():
    report = check(ops.cpy, backends=["cpu"], examples=60, threads=2)
    assert report.ran["cpu"] > 40, report
