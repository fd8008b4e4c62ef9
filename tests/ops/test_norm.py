import numpy as np
import pytest

from graphrt import ops
from tests.ops.evaluate import close, drawn, leaf, refuses, run, values


def test_by_hand():
    close(run(ops.rms_norm(leaf([[3, 4]]), leaf([1, 2]), eps=0.0)), [[3 / 12.5**0.5, 8 / 12.5**0.5]])
    close(run(ops.rms_norm(leaf([[3.0, 4.0]]), eps=3.5)), [[0.75, 1.0]])


@pytest.mark.parametrize("shape", [(5,), (1, 1), (2, 3, 33), (0, 4)])
def test_rows_get_unit_mean_square(shape):
    got = run(ops.rms_norm(drawn(*shape), eps=0.0))
    close((got**2).mean(-1), np.ones(shape[:-1]), 1e-5)


def test_weight_scales_each_element():
    x, weight = drawn(2, 6), drawn(6, seed=1, dtype="bf16")
    close(run(ops.rms_norm(x, weight)), run(ops.rms_norm(x)) * values(weight))


def test_zeros_stay_zeros():
    close(run(ops.rms_norm(leaf(np.zeros((2, 4))))), np.zeros((2, 4)))


def test_16_bit_rows_do_not_overflow():
    close(run(ops.rms_norm(leaf([[60000, -60000]], "f16"))), [[1, -1]])


def test_refusals():
    refuses(
        r"\[rms_norm\] weight f32 \[3\] must be \[D\], the last axis of x f32 \[2, 4\]",
        lambda: ops.rms_norm(drawn(2, 4), drawn(3)),
    )
    refuses(r"\[rms_norm\] eps must not be negative, got -1", lambda: ops.rms_norm(drawn(2, 4), eps=-1))
    refuses(r"\[rms_norm\] x must be one of f32, f16, bf16, got q4_0", lambda: ops.rms_norm(drawn(32, dtype="q4_0")))
