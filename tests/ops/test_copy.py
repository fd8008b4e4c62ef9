import numpy as np
import pytest

import graphrt
from graphrt import dtypes, ops
from graphrt.testing import random_blocks
from tests.ops.evaluate import INF, drawn, leaf, refuses, run, state

ROWS = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)


@pytest.mark.parametrize("name", dtypes.ALL)
@pytest.mark.parametrize("op", [ops.cont, ops.dup], ids=["cont", "dup"])
def test_copies_are_exact(op, name):
    dtype = dtypes.get(name)
    if dtype.is_quantized:
        array = random_blocks(np.random.default_rng(2), (3, 2, 256), dtype)
    else:
        array = np.arange(24).reshape(3, 2, 4).astype(dtype.numpy)
    got = graphrt.Scheduler(["reference"]).plan(op(graphrt.weight("x", array)[1:].permute(1, 0, 2))).run()[0]
    assert got.tobytes() == array[1:].transpose(1, 0, 2).tobytes()


def test_cast_rounds_floats_to_nearest_even():
    x = leaf([1 + 2**-11, 1 + 3 * 2**-11, 65520, -1e9])
    np.testing.assert_array_equal(run(ops.cast(x, dtype="f16")), [1, 1 + 2**-9, INF, -INF])
    np.testing.assert_array_equal(run(ops.cast(leaf([1 + 2**-8, 1 + 3 * 2**-8]), dtype="bf16")), [1, 1 + 2**-6])


def test_cast_between_integers_is_exact_and_of_floats_truncates():
    big = 2**31 - 1
    np.testing.assert_array_equal(run(ops.cast(leaf([big, -5], "i64"), dtype="i32")), [big, -5])
    np.testing.assert_array_equal(run(ops.cast(leaf([1.9, -1.9, 0.5]), dtype=dtypes.i32)), [1, -1, 0])


@pytest.mark.parametrize(("name", "step"), [("q8_0", 1 / 127), ("q5_0", 1 / 16), ("q4_0", 1 / 8), ("mxfp4", 1 / 3)])
def test_cast_quantizes_within_a_step(name, step):
    got = run(ops.cast(leaf(ROWS), dtype=name))
    largest = np.abs(ROWS.reshape(3, 2, 32)).max(-1, keepdims=True)
    assert (np.abs(got - ROWS).reshape(3, 2, 32) <= largest * step).all()


def test_cast_expands_quantized_rows():
    blocks = random_blocks(np.random.default_rng(4), (2, 256), dtypes.q6_k)
    np.testing.assert_array_equal(run(ops.cast(graphrt.weight("w", blocks), dtype="f32")), dtypes.to_f32(blocks))


def test_cast_refusals():
    refuses(
        r"\[cast\] q4_k can be read but not written here; choose one of f32", lambda: ops.cast(leaf(ROWS), dtype="q4_k")
    )
    refuses(r"\[cast\] q8_0 rows hold whole blocks of 32", lambda: ops.cast(drawn(2, 40), dtype="q8_0"))
    refuses(r'unknown dtype "f64"', lambda: ops.cast(leaf(ROWS), dtype="f64"))


def test_cpy_casts_and_writes_in_order():
    target = state(np.zeros((4, 3)), "f16")
    node = ops.cpy(target[1:3, :2], leaf([1, 2, 3, 4]))
    np.testing.assert_array_equal(run(node), [[1, 2], [3, 4]])
    np.testing.assert_array_equal(target.data, [[0, 0, 0], [1, 2, 0], [3, 4, 0], [0, 0, 0]])


def test_cpy_takes_any_shape_of_as_many_elements():
    target = state(np.zeros((2, 3)))
    np.testing.assert_array_equal(run(ops.cpy(target, leaf(np.arange(6).reshape(3, 2)))), [[0, 1, 2], [3, 4, 5]])


def test_cpy_quantizes_into_a_cache():
    target = state(np.zeros((6, 32)), "q8_0")
    run(ops.cpy(target, leaf(ROWS)))
    np.testing.assert_array_equal(target.data, dtypes.from_f32(ROWS, dtypes.q8_0).reshape(6, 1))


def test_cpy_refusals():
    refuses(
        r"\[cpy\] target f32 \[2, 2\] and x f32 \[3\] differ in elements",
        lambda: ops.cpy(state(np.zeros((2, 2))), drawn(3)),
    )
    shared = ops.view(state(np.zeros(8)), shape=(3, 4), strides=(8, 4))
    refuses(r"\[cpy\] elements of the target .* share memory", lambda: ops.cpy(shared, drawn(12)))
    blocks = graphrt.state("s", (1, 256), "q4_k")
    refuses(r"\[cpy\] q4_k can be read but not written here", lambda: ops.cpy(blocks, drawn(256)))


@pytest.mark.parametrize("shape", [(2, 3), (4, 3), (2, 9), (5, 2, 3), (0, 3)])
def test_repeat_tiles(shape):
    x = np.arange(6).reshape(2, 3)
    lengths = [n // m for n, m in zip(shape[-2:], x.shape, strict=True)]
    np.testing.assert_array_equal(run(ops.repeat(leaf(x), shape=shape)), np.tile(x, [*shape[:-2], *lengths]))


def test_repeat_tiles_whole_blocks():
    x = drawn(1, 32, dtype="q4_0")
    np.testing.assert_array_equal(run(ops.repeat(x, shape=(2, 96))), np.tile(run(ops.cont(x)), (2, 3)))


def test_repeat_refusals():
    refuses(
        r"\[repeat\] the lengths of \[4\] must be multiples of those of f32 \[3\]",
        lambda: ops.repeat(drawn(3), shape=(4,)),
    )
    refuses(r"\[repeat\] the lengths of \[6\]", lambda: ops.repeat(drawn(2, 3), shape=(6,)))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat_agrees_with_numpy(axis):
    a, b = np.arange(6).reshape(2, 3), np.arange(6, 12).reshape(2, 3)
    np.testing.assert_array_equal(run(ops.concat(leaf(a), leaf(b), axis=axis)), np.concatenate([a, b], axis))


def test_concat_joins_quantized_rows():
    a, b = drawn(2, 64, dtype="q8_0"), drawn(2, 32, dtype="q8_0", seed=1)
    expected = np.concatenate([run(ops.cont(a)), run(ops.cont(b))], -1)
    np.testing.assert_array_equal(run(ops.concat(a, b, axis=-1)), expected)


def test_concat_refusals():
    a = drawn(2, 3)
    refuses(
        r"\[concat\] a is f32 \[2, 3\] and b f16 \[2, 3\]; cast",
        lambda: ops.concat(a, drawn(2, 3, dtype="f16"), axis=0),
    )
    refuses(r"\[concat\] .* need one rank, and axis 2 within it", lambda: ops.concat(a, a, axis=2))
    refuses(r"\[concat\] .* may differ along axis 0 only", lambda: ops.concat(a, drawn(2, 4), axis=0))
