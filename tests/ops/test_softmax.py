import numpy as np
import pytest

from graphrt import ops
from tests.ops.evaluate import INF, close, drawn, leaf, refuses, run, values


def test_by_hand():
    close(run(ops.soft_max(leaf([0.0, np.log(3)]))), [0.25, 0.75])
    close(run(ops.soft_max(leaf([0.0, 1.0]), scale=np.log(3))), [0.25, 0.75])
    close(run(ops.soft_max(leaf([1000.0, 1000.0]))), [0.5, 0.5])


def test_rows_sum_to_one_and_mask_hides():
    mask = leaf([[0, -INF, 0], [0, 0, -INF]])
    got = run(ops.soft_max(drawn(4, 2, 3), mask, scale=0.3))
    close(got.sum(-1), np.ones((4, 2)))
    assert (got[:, 0, 1] == 0).all()
    assert (got[:, 1, 2] == 0).all()


def test_hidden_rows_give_zeros():
    close(run(ops.soft_max(leaf([[1.0, 2.0], [3.0, 4.0]]), leaf([[-INF], [0.0]])))[0], [0, 0])


@pytest.mark.parametrize("mask_shape", [(5,), (3, 1), (2, 1, 5), (1, 1, 1)])
def test_mask_broadcasts(mask_shape):
    x, mask = drawn(2, 3, 5), drawn(*mask_shape, seed=1)
    powers = np.exp(values(x) + values(mask))
    close(run(ops.soft_max(x, mask)), powers / powers.sum(-1, keepdims=True))


def test_sinks_take_their_share():
    x, sinks = drawn(2, 3, 4, 5), drawn(3, seed=1)
    powers = np.exp(values(x))
    total = powers.sum(-1, keepdims=True) + np.exp(values(sinks))[:, None, None]
    close(run(ops.soft_max(x, None, sinks)), powers / total)


def test_a_sink_far_above_takes_everything():
    close(run(ops.soft_max(leaf(np.zeros((1, 1, 2))), None, leaf([1e4]))), np.zeros((1, 1, 2)))


def test_soft_max_refusals():
    x = drawn(2, 3, 4)
    refuses(r"\[soft_max\] x and mask \[2, 3, 4\] and \[3\] do not broadcast", lambda: ops.soft_max(x, drawn(3)))
    refuses(r"\[soft_max\] mask f32 \[5, 2, 3, 4\] must broadcast to x", lambda: ops.soft_max(x, drawn(5, 2, 3, 4)))
    refuses(r"\[soft_max\] sinks f32 \[3\] must be \[H\]", lambda: ops.soft_max(x, None, drawn(3)))
    refuses(r"\[soft_max\] mask must be one of f32", lambda: ops.soft_max(x, leaf(np.zeros((3, 4)), "i32")))


@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 0), (2, 1, 40)])
def test_sum_rows(shape):
    x = drawn(*shape)
    close(run(ops.sum_rows(x)), values(x).sum(-1, keepdims=True))


def test_sum_rows_adds_above_16_bits():
    np.testing.assert_array_equal(run(ops.sum_rows(leaf(np.ones((1, 4096)), "bf16"))), [[4096]])
