import math

import numpy as np
import pytest

from graphrt import ops
from tests.ops.evaluate import INF, NAN, close, leaf, refuses, run

POINTS = [-30.0, -3.0, -1.0, -0.25, 0.0, 0.5, 1.0, 2.75, 30.0]
FORMULAS = {
    "silu": lambda x: x / (1 + math.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: x if x > 0 else 0.0,
    "tanh": math.tanh,
    "softplus": lambda x: math.log1p(math.exp(x)),
    "sqr": lambda x: x * x,
    "exp": math.exp,
    "neg": lambda x: -x,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_formula(name):
    close(run(getattr(ops, name)(leaf(POINTS))), [FORMULAS[name](x) for x in POINTS])


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_16_bit_results_are_the_rounded_truth(name, dtype):
    points = [-3.0, -0.25, 0.5, 2.75]
    expected = run(leaf([FORMULAS[name](x) for x in points], dtype)[:])
    np.testing.assert_array_equal(run(getattr(ops, name)(leaf(points, dtype))), expected)


def test_sqrt():
    np.testing.assert_array_equal(run(ops.sqrt(leaf([0, 4, 2.25, -1]))), [0, 2, 1.5, NAN])


@pytest.mark.parametrize(
    ("name", "expected"),
    [("silu", [-0.0, 1e4]), ("sigmoid", [0, 1]), ("softplus", [0, 1e4]), ("gelu", [-0.0, 1e4]), ("tanh", [-1, 1])],
)
def test_large_arguments_do_not_overflow(name, expected):
    np.testing.assert_array_equal(run(getattr(ops, name)(leaf([-1e4, 1e4]))), expected)


def test_limits():
    np.testing.assert_array_equal(run(ops.exp(leaf([-INF, 1e3]))), [0, INF])
    np.testing.assert_array_equal(run(ops.relu(leaf([NAN, -INF]))), [NAN, 0])


def test_integers_are_refused():
    refuses(
        r"\[silu\] x must be one of f32, f16, bf16, got i32 \[1\]; convert it with ops.cast",
        lambda: ops.silu(leaf([1], "i32")),
    )
