"""Kernels that read and write chosen rows against their references, and with ids that do not exist."""

import numpy as np
import pytest

import graphrt
from graphrt import ops
from graphrt.testing import check


@pytest.mark.parametrize("op", [ops.get_rows, ops.set_rows, ops.add_id], ids=lambda op: op.name)
def test_kernel_agrees_with_the_reference(op):
    report = check(op, backends=["cpu"], examples=80, threads=2)
    assert not report.refused["cpu"], report


IDS = np.array([1, -1, 2, 3, 2**30], np.int32)


def run(node):
    return graphrt.Scheduler(["cpu"]).plan(graphrt.Graph([node])).run()[0]


def test_rows_that_do_not_exist_read_as_nan():
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    got = run(ops.get_rows(graphrt.constant("x", x), graphrt.constant("ids", IDS)))
    np.testing.assert_array_equal(got[[0, 2]], x[[1, 2]])
    assert np.isnan(got[[1, 3, 4]]).all()


def test_rows_that_do_not_exist_are_not_written():
    cache = graphrt.state("cache", (5, 4))
    ones = np.ones((5, 4), np.float32)
    run(ops.set_rows(cache[1:4], graphrt.constant("rows", ones), graphrt.constant("ids", IDS)))
    np.testing.assert_array_equal(cache.data[:, 0], [0, 0, 1, 1, 0])


def test_biases_that_do_not_exist_add_nan():
    x, bias = np.zeros((1, 5, 4), np.float32), np.ones((3, 4), np.float32)
    got = run(ops.add_id(*(graphrt.constant(n, a) for n, a in (("x", x), ("bias", bias), ("ids", IDS[None])))))
    np.testing.assert_array_equal(np.isnan(got[0, :, 0]), [False, True, False, True, True])
