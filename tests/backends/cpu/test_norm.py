"""Kernels of row normalisations and reductions against their references."""

import pytest

from graphrt import ops
from graphrt.testing import check


@pytest.mark.parametrize("op", [ops.rms_norm, ops.soft_max, ops.sum_rows], ids=lambda op: op.name)
def test_kernel_agrees_with_the_reference(op):
    report = check(op, backends=["cpu"], examples=80, threads=2)
    assert not report.refused["cpu"], report


@pytest.mark.parametrize("op", [ops.rms_norm, ops.soft_max, ops.sum_rows], ids=lambda op: op.name)
def test_long_rows_agree_too(op):
    report = check(op, backends=["cpu"], mode="perf", examples=10)
    assert report.ran["cpu"] == 10, report
