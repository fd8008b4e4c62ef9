import numpy as np
import pytest

from graphrt import ops
from tests.ops.evaluate import INF, NAN, close, drawn, leaf, refuses, run, values

BINARY = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize(
    ("a", "b"), [((2, 3), (2, 3)), ((2, 3), (3,)), ((1,), (2, 3)), ((2, 1), (1, 3)), ((0, 3), (3,))]
)
def test_binary_ops_broadcast_both_ways(name, a, b):
    x, y = drawn(*a), drawn(*b, seed=1)
    close(run(getattr(ops, name)(x, y)), BINARY[name](values(x), values(y)))


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_result_has_the_first_dtype(dtype):
    assert ops.add(drawn(3, dtype=dtype), drawn(3)).dtype.name == dtype
    assert ops.add(drawn(3), drawn(3, dtype=dtype)).dtype.name == "f32"


def test_sum_is_taken_in_f32():
    # f16 counts in twos above 2048: a tie rounds to even, and 1.001 is more than a tie only if it stays f32.
    np.testing.assert_array_equal(run(ops.add(leaf([2048, 2048], "f16"), leaf([1, 1.001]))), [2048, 2050])


def test_division_by_zero_is_infinite():
    np.testing.assert_array_equal(run(ops.div(leaf([1, -1, 0]), leaf([0, 0, 0]))), [INF, -INF, NAN])


def test_binary_refusals():
    refuses(r"\[mul\] \[2, 3\] and \[2\] do not broadcast", lambda: ops.mul(drawn(2, 3), drawn(2)))
    refuses(
        r"\[add\] b must be one of f32, f16, bf16, got i32 \[2\]; convert it",
        lambda: ops.add(drawn(2), leaf([1, 2], "i32")),
    )
    refuses(r"\[sub\] a must be one of f32, f16, bf16, got q4_0", lambda: ops.sub(drawn(32, dtype="q4_0"), drawn(32)))


def test_scale():
    np.testing.assert_array_equal(run(ops.scale(leaf([1, -2, 0]), factor=0.5, bias=3)), [3.5, 2, 3])
    np.testing.assert_array_equal(run(ops.scale(leaf([1, -2]))), [1, -2])


def test_python_operators():
    x = leaf([1, 2])
    np.testing.assert_array_equal(run(2 * x + 1), [3, 5])
    np.testing.assert_array_equal(run(1 - x / 2), [0.5, 0])
    np.testing.assert_array_equal(run(-(x - x * x)), [0, 2])


def test_clamp_keeps_nan():
    np.testing.assert_array_equal(run(ops.clamp(leaf([-2, 0.5, 9, NAN, INF]), min=-1, max=1)), [-1, 0.5, 1, NAN, 1])
    np.testing.assert_array_equal(run(ops.clamp(leaf([-2, 9]), min=0, max=INF)), [0, 9])
    refuses(r"\[clamp\] min 2 must not exceed max 1", lambda: ops.clamp(drawn(2), min=2, max=1))


def test_fill():
    np.testing.assert_array_equal(run(ops.fill(drawn(2, 3), value=1.5)), np.full((2, 3), 1.5))
    np.testing.assert_array_equal(run(ops.fill(leaf([NAN, INF]), value=0)), [0, 0])
    np.testing.assert_array_equal(run(ops.fill(leaf([1, 2], "i8"), value=-128)), [-128, -128])
    refuses(r"\[fill\] i8 holds whole numbers -128 to 127, got 128", lambda: ops.fill(leaf([1], "i8"), value=128))
    refuses(r"\[fill\] i32 holds whole numbers .*, got 0.5", lambda: ops.fill(leaf([1], "i32"), value=0.5))
