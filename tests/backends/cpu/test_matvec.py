"""Products with few columns at every number of columns that goes its own way; and bf16 weights with many."""

import ml_dtypes
import numpy as np
import pytest

import graphrt
from graphrt import ops
from graphrt.backends.cpu import bf16, matmat_bf16, matmul
from graphrt.testing import normalised_error
from tests.backends.cpu.test_matmul import mul_mat_id, product_error, tolerance, weights

needs_pairs = pytest.mark.skipif(not bf16.has_pairs(), reason="this processor has no dot products of bfloat16")


@pytest.mark.parametrize("name", ["f16", "bf16", "q8_0", "q5_1", "mxfp4", "q4_k", "q6_k", "iq4_xs"])
def test_every_number_of_columns(name):
    width = {"q4_k": 1280, "q6_k": 256, "iq4_xs": 768}.get(name, 3 * 128 + 96)
    w = weights(name, 35, width)
    for columns in (1, 2, 3, 4, 5, 7):
        x = weights("f32", columns, width)
        assert product_error(w, x) < tolerance(name, columns=columns), columns


@pytest.mark.parametrize("name", ["q8_0", "q4_1", "q6_k"])
def test_each_column_is_the_product_of_its_own(name):
    w, x = graphrt.weight("w", weights(name, 9, 512)), graphrt.constant("x", weights("f32", 7, 512))
    whole, single = ops.mul_mat(w, x), [ops.mul_mat(w, x[i : i + 1]) for i in range(7)]
    plan = graphrt.Scheduler(["cpu"], threads=2).plan(graphrt.Graph([whole, *single]))
    got, *rows = plan.run()
    np.testing.assert_allclose(got, np.concatenate(rows), rtol=1e-5, atol=1e-4)


def rounded(x: np.ndarray) -> np.ndarray:
    return x.astype(ml_dtypes.bfloat16).astype(np.float32)


@needs_pairs
@pytest.mark.parametrize(
    ("height", "width", "columns"), [(150, 1281, 29), (64, 2100, 12), (1, 33, 6), (33, 1, 17), (40, 1024, 48)]
)
def test_pairs_are_exact_where_x_fits_bf16(height, width, columns):
    w, x = weights("bf16", height, width), rounded(weights("f32", columns, width))
    assert product_error(w, x) < 1e-11


@needs_pairs
def test_pairs_round_x_to_nearest():
    w, x = weights("bf16", 40, 512), weights("f32", 16, 512)
    error = product_error(w, x)
    assert normalised_error(rounded(x), x) / 3 < error < 3 * normalised_error(rounded(x), x)


@needs_pairs
@pytest.mark.parametrize("rows", [1, 4])
def test_pairs_by_expert(rows):
    w, x = weights("bf16", 5, 70, 300), rounded(weights("f32", 60, rows, 300))
    ids = np.argsort(np.random.default_rng(1).random((60, 5)))[:, :4].astype(np.int32)
    got, node = mul_mat_id(w, x, ids)
    assert matmul.has_many_columns(node)
    assert matmat_bf16.takes(node)
    assert normalised_error(got, ops.mul_mat_id.evaluate(node, [w, x, ids])) < 1e-11


@needs_pairs
def test_slices_of_pairs_add_up(monkeypatch):
    monkeypatch.setattr(matmul, "SLICE_BYTES", 1)
    w, x = weights("bf16", 40, 1000), rounded(weights("f32", 30, 1000))
    assert product_error(w, x) < 1e-11


@pytest.mark.parametrize("name", ["bf16", "f16", "q5_1", "iq4_xs"])
@pytest.mark.parametrize("columns", [2, 16])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_reach_the_result(name, columns, bad):
    x = weights("f32", columns, 512)
    x[1, 300] = bad
    node = ops.mul_mat(graphrt.weight("w", weights(name, 5, 512)), graphrt.constant("x", x))
    got = graphrt.Scheduler(["cpu"], threads=2).plan(graphrt.Graph([node])).run()[0]
    assert not np.isfinite(got[1]).any()
    assert np.isfinite(np.delete(got, 1, axis=0)).all()
