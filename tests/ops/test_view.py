import numpy as np
import pytest

import graphrt
from graphrt import dtypes, ops
from graphrt.testing import random_blocks
from tests.ops.evaluate import drawn, leaf, refuses, run

X = np.arange(24).reshape(2, 3, 4)


@pytest.mark.parametrize(
    "index", [0, -1, slice(1, None), (slice(None), 2), (..., slice(0, 4, 3)), (1, 2, slice(1, 3)), (slice(0, 0),)]
)
def test_slicing_agrees_with_numpy(index):
    np.testing.assert_array_equal(run(ops.cont(leaf(X)[index])), X[index])


def test_view_reads_any_strides():
    x = leaf(np.arange(10))
    windows = ops.view(x, shape=(7, 4), strides=(4, 4))
    np.testing.assert_array_equal(run(windows), np.lib.stride_tricks.sliding_window_view(np.arange(10.0), 4))
    np.testing.assert_array_equal(run(ops.view(x, shape=(3, 2), strides=(0, 8), offset=4)), [[1, 3]] * 3)


def test_reference_finds_the_same_elements_as_the_plan():
    array = np.asfortranarray(X.astype(np.float32))
    x = graphrt.weight("w", array)
    for node in (x[1, :, 2:], x[:, 1:, ::3], x[0, 0]):
        np.testing.assert_array_equal(ops.view.evaluate(node, [array]), run(node))


def test_view_of_a_view_adds_offsets():
    np.testing.assert_array_equal(run(ops.cont(leaf(X)[1][1:][:, 2:])), X[1][1:][:, 2:])


def test_view_of_quantized_rows_moves_whole_blocks():
    blocks = random_blocks(np.random.default_rng(0), (3, 96), dtypes.q5_0)
    view = graphrt.weight("w", blocks)[1:, 32:]
    assert view.shape == (2, 64)
    np.testing.assert_array_equal(run(ops.cont(view)), dtypes.to_f32(blocks)[1:, 32:])


def test_view_refusals():
    x = drawn(4, 6)
    refuses(
        r"\[view\] shape \[2, 3\] and strides \[4\] differ in length", lambda: ops.view(x, shape=(2, 3), strides=(4,))
    )
    refuses(
        r"\[view\] offset 2 .* must be multiples of the 4 bytes",
        lambda: ops.view(x, shape=(2,), strides=(4,), offset=2),
    )
    refuses(r"\[view\] .* ends at byte 104; .* ends at 96", lambda: ops.view(x, shape=(26,), strides=(4,)))
    refuses(r"\[view\] ", lambda: ops.view(x, shape=(2,), strides=(-4,), offset=8))
    refuses(r"cuts a block of 32 elements", lambda: leaf(np.zeros((2, 64)), "q4_0")[:, 16:])


@pytest.mark.parametrize("shape", [(24,), (-1,), (4, 6), (2, -1, 2), (1, 24, 1)])
def test_reshape_agrees_with_numpy(shape):
    np.testing.assert_array_equal(run(leaf(X).reshape(*shape)), X.reshape(shape))


def test_reshape_of_quantized_rows_keeps_blocks():
    x = drawn(2, 64, dtype="q8_0")
    np.testing.assert_array_equal(run(x.reshape(4, 32)), run(ops.cont(x)).reshape(4, 32))


def test_reshape_refusals():
    x = drawn(4, 6)
    refuses(r"\[reshape\] f32 \[4, 6\] has 24 elements, the shape \[5, 5\] 25", lambda: x.reshape(5, 5))
    refuses(r"\[reshape\] 24 elements .* do not divide over \[5, -1\]", lambda: x.reshape(5, -1))
    refuses(r"more than one -1", lambda: x.reshape(-1, -1))
    refuses(r"\[reshape\] x must have dense memory.*ops.cont", lambda: x[:, :3].reshape(12))
    refuses(r"\[reshape\] q4_0 rows hold whole blocks of 32", lambda: drawn(2, 32, dtype="q4_0").reshape(4, 16))
    refuses(r"do not divide", lambda: drawn(0, 3).reshape(0, -1))


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (-1, 0, -2)])
def test_permute_agrees_with_numpy(axes):
    np.testing.assert_array_equal(run(ops.cont(leaf(X).permute(*axes))), X.transpose(axes))


def test_transpose_swaps_the_last_two_axes():
    np.testing.assert_array_equal(run(ops.transpose(leaf(X))), X.swapaxes(1, 2))


def test_permute_refusals():
    x = leaf(X)
    refuses(r"\[permute\] axes \[0, 1\] must name each axis of f32 \[2, 3, 4\] once", lambda: x.permute(0, 1))
    refuses(r"\[permute\] axes \[0, 1, 1\]", lambda: x.permute(0, 1, 1))
    refuses(r"\[permute\] axes \[0, 1, 3\]", lambda: x.permute(0, 1, 3))
    refuses(r"along which its blocks lie; cast it", lambda: drawn(2, 32, dtype="q4_0").permute(1, 0))
    refuses(r"\[transpose\] the blocks of q4_0", lambda: ops.transpose(drawn(2, 32, dtype="q4_0")))
    refuses(r"\[transpose\] x must be \[..., M, N\], got f32 \[3\]", lambda: ops.transpose(drawn(3)))
