"""Matrix products on the CPU against their references: every dtype, layout, batch and number of columns."""

import numpy as np
import pytest

import graphrt
from graphrt import dtypes, ops
from graphrt.backends.cpu import bf16, host, matmul
from graphrt.testing import check, normalised_error, random_blocks

VALUES = [dtype.name for dtype in (*dtypes.FLOATS, *dtypes.QUANTIZED)]
GENERATOR = np.random.default_rng(5)


def weights(name: str, *shape: int) -> np.ndarray:
    dtype = dtypes.get(name)
    if dtype.is_quantized:
        return random_blocks(GENERATOR, shape, dtype)
    return GENERATOR.standard_normal(shape, np.float32).astype(dtype.numpy)


def product_error(w: np.ndarray, x: np.ndarray) -> float:
    node = ops.mul_mat(graphrt.weight("w", w), graphrt.constant("x", x))
    got = graphrt.Scheduler(["cpu"], threads=2).plan(graphrt.Graph([node])).run()[0]
    return normalised_error(got, ops.mul_mat.evaluate(node, [w, x]))


def tolerance(name: str, *, columns: int = 1) -> float:
    """Quantized weights meet x in int8, floats in float32; but bf16 meets many columns in bf16 where that is faster."""
    if name == "bf16" and columns > 5 and bf16.has_pairs():
        return 1e-5
    return 5e-4 if dtypes.get(name).is_quantized else 1e-11


@pytest.mark.parametrize("op", [ops.mul_mat, ops.mul_mat_transposed, ops.mul_mat_id])
def test_drawn_cases(op):
    report = check(op, backends=["cpu"], examples=100, threads=2)
    assert report.ran["cpu"] == 100


@pytest.mark.parametrize("level", host.levels())
@pytest.mark.parametrize("name", VALUES)
def test_few_columns(name, level):
    block = dtypes.get(name).block
    with host.use_level(level):
        for width in (3 * 256, 5 * block if block < 256 else 256, 6 * 128 + block if block < 256 else 512):
            assert product_error(weights(name, 37, width), weights("f32", 3, width)) < tolerance(name)


@pytest.mark.parametrize("level", host.levels())
@pytest.mark.parametrize("name", ["f32", "bf16", "q8_0", "q4_k"])
@pytest.mark.parametrize(("height", "width", "columns"), [(70, 1280, 29), (32, 256, 16), (5, 2304, 13)])
def test_many_columns(name, height, width, columns, level):
    with host.use_level(level):
        error = product_error(weights(name, height, width), weights("f32", columns, width))
        assert error < tolerance(name, columns=columns)


@pytest.mark.parametrize("name", VALUES)
def test_many_columns_of_every_dtype(name):
    assert product_error(weights(name, 19, 512), weights("f32", 17, 512)) < tolerance(name, columns=17)


@pytest.mark.parametrize("columns", [1, 20])
@pytest.mark.parametrize("x_dtype", ["f16", "bf16", "q8_0", "q6_k"])
def test_x_of_other_dtypes(x_dtype, columns):
    assert product_error(weights("q4_0", 11, 512), weights(x_dtype, columns, 512)) < 5e-4
    assert product_error(weights("f32", 11, 512), weights(x_dtype, columns, 512)) < 1e-11


@pytest.mark.parametrize("columns", [1, 20])
def test_strided_operands(columns):
    w, x = weights("f32", 40, 21, 2), weights("f32", 2, columns, 40)
    assert product_error(w.T[0], x[1]) < 1e-11
    assert product_error(w.T, x) < 1e-11


@pytest.mark.parametrize("columns", [1, 20])
def test_batches_broadcast_both_ways(columns):
    w, x = weights("f16", 3, 1, 8, 33), weights("f32", 2, columns, 33)
    assert product_error(w, x) < 1e-11
    assert product_error(w[:1], x) < 1e-11
    assert product_error(w, x[:1]) < 1e-11


@pytest.mark.parametrize("level", host.levels())
@pytest.mark.parametrize("name", ["f32", "f16", "q8_0", "q4_k"])
@pytest.mark.parametrize("columns", [1, 3, 40])
def test_transposed(name, columns, level):
    w, x = weights(name, 2, 200, 512), weights("f32", 2, columns, 200)
    node = ops.mul_mat_transposed(graphrt.weight("w", w), graphrt.constant("x", x))
    with host.use_level(level):
        got = graphrt.Scheduler(["cpu"], threads=2).plan(graphrt.Graph([node])).run()[0]
    assert normalised_error(got, ops.mul_mat_transposed.evaluate(node, [w, x])) < 1e-11


def mul_mat_id(w: np.ndarray, x: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, graphrt.Tensor]:
    node = ops.mul_mat_id(graphrt.weight("w", w), graphrt.constant("x", x), graphrt.constant("ids", ids))
    return graphrt.Scheduler(["cpu"], threads=2).plan(graphrt.Graph([node])).run()[0], node


@pytest.mark.parametrize(("tokens", "rows"), [(1, 1), (1, 4), (5, 1), (60, 1), (60, 4)])
@pytest.mark.parametrize("name", ["f32", "q8_0", "q4_k"])
def test_experts(name, tokens, rows):
    w, x = weights(name, 7, 40, 256), weights("f32", tokens, rows, 256)
    ids = np.argsort(GENERATOR.random((tokens, 7)))[:, :4].astype(np.int32)
    got, node = mul_mat_id(w, x, ids)
    assert normalised_error(got, ops.mul_mat_id.evaluate(node, [w, x, ids])) < tolerance(name)


@pytest.mark.parametrize("tokens", [1, 60])
def test_an_id_that_is_no_expert_gives_nan(tokens):
    w, x = weights("f32", 3, 8, 64), weights("f32", tokens, 1, 64)
    ids = np.tile(np.array([[0, 3, -1, 2]], np.int32), (tokens, 1))
    got, _ = mul_mat_id(w, x, ids)
    assert np.isnan(got[:, 1:3]).all()
    assert np.isfinite(got[:, [0, 3]]).all()


@pytest.mark.parametrize("name", ["q8_0", "q4_k"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_reach_the_result(name, bad):
    x = weights("f32", 2, 512)
    x[0, 300] = bad
    node = ops.mul_mat(graphrt.weight("w", weights(name, 5, 512)), graphrt.constant("x", x))
    got = graphrt.Scheduler(["cpu"], threads=2).plan(graphrt.Graph([node])).run()[0]
    assert not np.isfinite(got[0]).any()
    assert np.isfinite(got[1]).all()


@pytest.mark.parametrize("op", [ops.mul_mat, ops.mul_mat_transposed, ops.mul_mat_id])
@pytest.mark.parametrize("depth", [1000, 256, 2048])
def test_slices_of_the_depth_add_up_and_take_less_workspace(op, depth, monkeypatch):
    w = weights("f32", 3, 40, depth) if op is not ops.mul_mat_transposed else weights("f32", 3, depth, 40)
    x = weights("f32", *((30, 1, depth) if op is ops.mul_mat_id else (3, 60, depth)))
    ids = [np.stack([np.roll(np.arange(3), i) for i in range(30)]).astype(np.int32)] if op is ops.mul_mat_id else []
    arrays = [w, x, *ids]
    node = op(*(graphrt.constant(name, each) for name, each in zip("wxi", arrays, strict=False)))
    whole = matmul.workspace(node, 2)
    monkeypatch.setattr(matmul, "SLICE_BYTES", 1)
    assert matmul.slice_depth(node) == 256
    assert (matmul.workspace(node, 2) < whole) == (depth > 256)
    got = graphrt.Scheduler(["cpu"], threads=2).plan(graphrt.Graph([node])).run()[0]
    assert normalised_error(got, op.evaluate(node, arrays)) < 1e-11
