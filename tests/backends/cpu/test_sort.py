"""Kernels that order rows against their references, and the hard cases: ties, NaN, infinities, long rows."""

import numpy as np
import pytest

import graphrt
from graphrt import ops
from graphrt.testing import check

HARD = np.array([[1, np.nan, 0.0, -0.0, np.inf, -np.inf, 1, np.nan, -2, 1e-40, -1e-40, 0.0]], np.float32)


@pytest.mark.parametrize("op", [ops.argsort, ops.top_k], ids=lambda op: op.name)
def test_kernel_agrees_with_the_reference(op):
    report = check(op, backends=["cpu"], examples=60, threads=2)
    assert not report.refused["cpu"], report


@pytest.mark.parametrize("x", [HARD, np.tile(np.float32([3, 1, 2, 2]), (2, 5000))], ids=["special", "ties"])
def test_ties_and_special_values_keep_their_order(x):
    leaf = graphrt.constant("x", x)
    nodes = [ops.argsort(leaf), ops.argsort(leaf, descending=True), ops.top_k(leaf, k=9)]
    got = graphrt.Scheduler(["cpu"]).plan(graphrt.Graph(nodes)).run()
    want = graphrt.Scheduler(["reference"]).plan(graphrt.Graph(nodes)).run()
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)
