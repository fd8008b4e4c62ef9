import numpy as np
import pytest

from graphrt import ops
from tests.ops.evaluate import INF, NAN, drawn, leaf, refuses, run

ROW = [2.0, NAN, 3.0, -INF, 2.0, 3.0, 0.0, -0.0]


def test_argsort_is_stable_and_puts_nan_lowest():
    np.testing.assert_array_equal(run(ops.argsort(leaf(ROW))), [1, 3, 6, 7, 0, 4, 2, 5])
    np.testing.assert_array_equal(run(ops.argsort(leaf(ROW), descending=True)), [2, 5, 0, 4, 6, 7, 3, 1])


def test_top_k_is_the_beginning_of_the_descending_order():
    np.testing.assert_array_equal(run(ops.top_k(leaf(ROW), k=3)), [2, 5, 0])
    np.testing.assert_array_equal(run(ops.top_k(leaf(ROW), k=8)), run(ops.argsort(leaf(ROW), descending=True)))


@pytest.mark.parametrize("shape", [(7,), (3, 1), (2, 3, 40), (0, 3), (2, 0)])
@pytest.mark.parametrize("descending", [False, True])
def test_rows_come_out_sorted(shape, descending):
    x = drawn(*shape, dtype="bf16")
    order = run(ops.argsort(x, descending=descending))
    assert order.dtype == np.int32
    row = np.take_along_axis(run(x[:]), order, -1)
    np.testing.assert_array_equal(row, np.sort(row, -1)[..., :: -1 if descending else 1])


def test_refusals():
    refuses(
        r"\[top_k\] k must be between 1 and the 3 elements of a row of f32 \[2, 3\], got 4",
        lambda: ops.top_k(drawn(2, 3), k=4),
    )
    refuses(r"\[top_k\] k must be .* got 0", lambda: ops.top_k(drawn(2, 3), k=0))
    refuses(r"\[argsort\] x must be one of f32", lambda: ops.argsort(leaf([1], "i32")))
