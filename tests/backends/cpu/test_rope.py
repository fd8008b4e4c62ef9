"""Kernel of rope against its reference, and its angles at far positions."""

import numpy as np

import graphrt
from graphrt import ops
from graphrt.testing import check


def test_kernel_agrees_with_the_reference():
    report = check(ops.rope, backends=["cpu"], examples=100, threads=2)
    assert not report.refused["cpu"], report


def test_angles_are_exact_at_far_positions():
    positions = np.array([0, 1, 131_071, 999_983, 2**31 - 1], np.int32)
    x = np.tile(np.float32([1.0, 0.0]), (len(positions), 1, 32))
    y = ops.rope(graphrt.constant("x", x), graphrt.constant("positions", positions))
    got = graphrt.Scheduler(["cpu"]).plan(graphrt.Graph([y])).run()[0]
    angle = positions[:, None] * 1e4 ** (-np.arange(32) / 32.0)
    np.testing.assert_allclose(got[:, 0, 0::2], np.cos(angle), atol=3e-7)
    np.testing.assert_allclose(got[:, 0, 1::2], np.sin(angle), atol=3e-7)
