"""Interleaved weights: the CPU's products with them are exact ones with x rounded to int8, of few columns and many."""

from itertools import product

import numpy as np
import pytest

import graphrt
from graphrt import Graph, Scheduler, dtypes, ops
from graphrt.backends.cpu import host, row_products
from graphrt.testing import normalised_error, random_blocks
from tests.backends.cpu.test_int8_product import EXACT, QUANTIZED, rounded_to_int8

GENERATOR = np.random.default_rng(11)
FEW, MANY = (1, 2, 3, 4, 7), 20


def interleaved(name: str, *shape: int, called: str = "w") -> graphrt.Tensor:
    return graphrt.weight(called, dtypes.interleave(random_blocks(GENERATOR, shape, dtypes.get(name))))


def run(node: graphrt.Tensor, threads: int = 2, fuse: int = 1) -> np.ndarray:
    return Scheduler(["cpu"], threads=threads, fuse=fuse).plan(Graph([node])).run()[0]


def error(name: str, height: int, width: int, columns: int) -> float:
    w, x = interleaved(name, height, width), GENERATOR.standard_normal((columns, width), np.float32)
    exact = rounded_to_int8(x) @ dtypes.to_f32(w.data).astype(np.float64).T
    return normalised_error(run(ops.mul_mat(w, graphrt.constant("x", x))), exact.astype(np.float32))


@pytest.mark.parametrize("name", QUANTIZED)
def test_every_dtype(name):
    """By one column, two, four and panels; more than a portion of rows, and an odd number of blocks."""
    width = 160 if dtypes.get(name).block == 32 else 768
    for columns in (*FEW, MANY):
        assert error(name, 48, width, columns) < EXACT, f"{columns} columns"


@pytest.mark.parametrize(("level", "name"), [*product(host.levels()[1:2], ("q2_k", "iq4_xs")), ("generic", "q8_0")])
def test_lower_levels(level, name):
    with host.use_level(level):
        for columns in (1, MANY):
            assert error(name, 32, 768, columns) < EXACT, f"{columns} columns"


@pytest.mark.parametrize(("height", "width", "columns"), [(1600, 64, 1), (1600, 64, 5), (16, 5376, 1), (48, 5376, 20)])
def test_sizes(height, width, columns):
    assert error("q4_0", height, width, columns) < EXACT


def test_the_way_for_many_columns_is_among_the_tested():
    assert max(FEW) < row_products.rows_of("q4_0_r16", True).many <= MANY


@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_experts_their_gated_unit_and_their_sum(tokens):
    used, experts, width = 2, 5, 64
    ids = np.tile(np.array([4, 1], np.int32), (tokens, 1))
    ids[-1] = 0, 3
    x = graphrt.constant("x", GENERATOR.standard_normal((tokens, 1, width), np.float32))
    chosen = graphrt.constant("ids", ids)
    gate, up = (ops.mul_mat_id(interleaved("q5_0", experts, 64, width, called=half), x, chosen) for half in "gu")
    shares = graphrt.constant("shares", GENERATOR.random((tokens, used, 1), np.float32))
    down = ops.mul_mat_id(interleaved("q8_0", experts, 48, 64), ops.swiglu(gate, up), chosen)
    total = ops.weighted_sum(down, shares)
    fused = run(total, 1)
    assert normalised_error(fused, run(total, 1, fuse=0)) < EXACT
    for threads in (2, 3):
        np.testing.assert_array_equal(run(total, threads), fused)


def test_x_that_is_not_finite():
    x = GENERATOR.standard_normal((3, 64), np.float32)
    x[1, 7], x[2, 40] = np.nan, np.inf
    y = run(ops.mul_mat(interleaved("q4_0", 16, 64), graphrt.constant("x", x)))
    assert np.isfinite(y[0]).all()
    assert not np.isfinite(y[1:]).any()


def test_other_ops_do_not_take_them():
    w = interleaved("q8_0", 16, 64)
    with pytest.raises(
        graphrt.GraphError, match=r"\[get_rows\] x is .*q8_0_r16.*side by side for products; load it as q8_0"
    ):
        ops.get_rows(w, graphrt.constant("ids", np.zeros(1, np.int32)))
    with pytest.raises(graphrt.GraphError, match=r"\[mul_mat\] x is .*q8_0_r16.*side by side"):
        ops.mul_mat(graphrt.constant("a", np.zeros((3, 64), np.float32)), w)
