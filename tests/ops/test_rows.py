import numpy as np
import pytest

import graphrt
from graphrt import GraphError, dtypes, ops
from graphrt.testing import random_blocks
from tests.ops.evaluate import close, drawn, leaf, refuses, run, state, values

TABLE = np.arange(12).reshape(4, 3)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "i32", "i64", "i8"])
def test_get_rows(dtype):
    node = ops.get_rows(leaf(TABLE, dtype), leaf([2, 0, 2], "i32"))
    assert node.dtype.name == (dtype if dtype.startswith("i") else "f32")
    np.testing.assert_array_equal(run(node), TABLE[[2, 0, 2]])


@pytest.mark.parametrize("dtype", dtypes.QUANTIZED, ids=str)
def test_get_rows_expands_quantized_rows(dtype):
    blocks = random_blocks(np.random.default_rng(0), (5, 512), dtype)
    np.testing.assert_array_equal(
        run(ops.get_rows(graphrt.weight("w", blocks), leaf([4, 1], "i64"))), dtypes.to_f32(blocks)[[4, 1]]
    )


def test_get_rows_of_each_batch():
    x, ids = np.arange(24).reshape(2, 4, 3), [[3, 0], [1, 1]]
    np.testing.assert_array_equal(run(ops.get_rows(leaf(x), leaf(ids, "i32"))), [x[0][[3, 0]], x[1][[1, 1]]])


def test_get_rows_of_router_weights():
    """[T, E, 1] with [T, K]: how a mixture of experts picks the probabilities of the chosen experts."""
    probabilities = leaf([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]]).reshape(2, 3, 1)
    close(run(ops.get_rows(probabilities, leaf([[2, 1], [0, 1]], "i32"))), [[[0.7], [0.2]], [[0.5], [0.3]]])


@pytest.mark.parametrize("wrong", [4, -1])
def test_ids_outside_are_refused_at_run_time(wrong):
    with pytest.raises(GraphError, match=rf"\[get_rows\] ids reach from .*{wrong}.*; there are rows 0 to 3"):
        run(ops.get_rows(leaf(TABLE), leaf([wrong], "i32")))
    with pytest.raises(GraphError, match=r"\[set_rows\] ids reach"):
        run(ops.set_rows(state(TABLE), drawn(1, 3), leaf([wrong], "i32")))


def test_get_rows_refusals():
    refuses(r"\[get_rows\] ids must be one of i32, i64, got f32 \[2\]", lambda: ops.get_rows(leaf(TABLE), drawn(2)))
    refuses(r"\[get_rows\] .* their batch axes must agree", lambda: ops.get_rows(leaf(TABLE), leaf([[1]], "i32")))


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_set_rows_keeps_the_other_rows(dtype):
    target = state(TABLE, dtype)
    run(ops.set_rows(target, leaf([[7, 8, 9], [4, 5, 6]]), leaf([3, 1], "i64")))
    np.testing.assert_array_equal(dtypes.to_f32(target.data), [[0, 1, 2], [4, 5, 6], [6, 7, 8], [7, 8, 9]])


@pytest.mark.parametrize("dtype", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "mxfp4"])
def test_set_rows_quantizes(dtype):
    rows = drawn(2, 64)
    target = graphrt.state("cache", (5, 64), dtype)
    run(ops.set_rows(target, rows, leaf([4, 2], "i32")))
    np.testing.assert_array_equal(target.data[[4, 2]], dtypes.from_f32(rows.data, dtypes.get(dtype)))
    assert not target.data[[0, 1, 3]].view(np.uint8).any()


def test_set_rows_in_parts_keeps_the_other_columns():
    target = state(TABLE)
    written = ops.set_rows(target, leaf([[7], [8]]), leaf([3, 1], "i64"), first=2)
    run(ops.set_rows(written, leaf([[1, 2]]), leaf([1], "i64"), first=0))
    expected = TABLE.copy()
    expected[[3, 1], 2], expected[1, :2] = [7, 8], [1, 2]
    np.testing.assert_array_equal(target.data, expected)


@pytest.mark.parametrize(("dtype", "width", "first"), [("f32", 2, 2), ("f32", 4, 0), ("q8_0", 32, 16), ("q8_0", 16, 0)])
def test_set_rows_refuses_columns_outside_target(dtype, width, first):
    target = graphrt.state("target", (4, 3 if dtype == "f32" else 64), dtype)
    refuses(r"\[set_rows\] columns", lambda: ops.set_rows(target, drawn(2, width), leaf([1, 0], "i32"), first=first))


def test_set_rows_into_a_view_of_a_cache():
    target = state(np.zeros((2, 3, 4)))
    run(ops.set_rows(target[1, :, 1:3], leaf([[1, 2]]), leaf([2], "i32")))
    np.testing.assert_array_equal(target.data.nonzero(), [[1, 1], [2, 2], [1, 2]])


def test_set_rows_broadcasts_ids_over_batches():
    target = state(np.zeros((2, 3, 1)))
    run(ops.set_rows(target, leaf([[[1], [2]], [[3], [4]]]), leaf([2, 0], "i32")))
    np.testing.assert_array_equal(target.data[..., 0], [[2, 0, 1], [4, 0, 3]])


def test_later_nodes_read_what_was_written():
    target = state(TABLE)
    written = ops.set_rows(target, leaf([[7, 8, 9]]), leaf([0], "i32"))
    np.testing.assert_array_equal(run(ops.sum_rows(written)), [[24], [12], [21], [30]])


def test_set_rows_refusals():
    target, ids = state(TABLE), leaf([0, 1], "i32")
    refuses(
        r"\[set_rows\] target f32 \[4, 3\] is .*, rows f32 \[2, 4\] must be",
        lambda: ops.set_rows(target, drawn(2, 4), ids),
    )
    refuses(r"\[set_rows\] .* and ids i32 \[2\]", lambda: ops.set_rows(target, drawn(3, 3), ids))
    refuses(
        r"\[set_rows\] the batch axes \[2\] of rows must broadcast", lambda: ops.set_rows(target, drawn(2, 2, 3), ids)
    )
    refuses(r"\[set_rows\] rows must be one of f32", lambda: ops.set_rows(target, leaf(TABLE[:2], "i32"), ids))
    k_quant = graphrt.state("k", (4, 256), "q4_k")
    refuses(r"\[set_rows\] q4_k can be read but not written", lambda: ops.set_rows(k_quant, drawn(2, 256), ids))


def test_add_id():
    x, bias = drawn(2, 2, 3), drawn(4, 3, seed=1)
    ids = [[3, 0], [1, 1]]
    close(run(ops.add_id(x, bias, leaf(ids, "i32"))), values(x) + values(bias)[ids])
    refuses(r"\[add_id\] needs x \[T, U, D\]", lambda: ops.add_id(x, drawn(4, 2), leaf(ids, "i32")))
