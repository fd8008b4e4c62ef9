"""Few tokens' products with their experts, and their weighted sums, in one pass: the same bits as one by one."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphrt
from graphrt import Graph, Scheduler, dtypes, ops
from graphrt.backends.cpu import expert_sum, host, matmul
from graphrt.backends.cpu.portions import MOST, portion_start
from graphrt.testing import Draw, random_blocks
from tests.backends.cpu.test_expert_sums import drawn_ids, experts_sum, rows
from tests.backends.cpu.test_fusion import fusions, run

DTYPES = ["q8_0", "q4_k", "bf16", "f32", "q4_0_r16", "iq4_xs"]  # of all ways to multiply few columns


def assert_alike(graph: Graph, threads: int = 2) -> np.ndarray:
    """It is one fusion, which gives what the nodes give one by one, bit for bit; returns that."""
    assert not matmul.has_many_columns(graph.outputs[0].srcs[0])
    assert fusions(Scheduler(["cpu"]).schedule(graph)) == [("weighted sum", ("products", graph.outputs[0].name))]
    (got,), (want,) = run(graph, 1, threads), run(graph, 0)
    np.testing.assert_array_equal(got, want)
    return got


@settings(max_examples=60, deadline=None, database=None)
@given(st.integers(0, 2**63))
def test_any_sizes(seed):
    draw = Draw(Random(seed).randint)
    dtype, experts = draw.choice(DTYPES), draw.integer(3, 20)
    used, height = draw.integer(1, 3), draw.choice([16, 64, 112, 1040] if dtype == "q4_0_r16" else [1, 7, 31, 100, 600])
    width = 256 * draw.integer(1, 3) if dtype in ("q4_k", "iq4_xs") else 32 * draw.integer(1, 40)
    tokens = draw.integer(1, max(1, (2 * experts - 1) // used))
    ids = np.random.default_rng(tokens).integers(0, experts, (tokens, used), np.int32)  # the same one twice as well
    graph = Graph(experts_sum(ids, rows(tokens, used, width), height, dtype, experts))
    assert_alike(graph, draw.integer(1, 4))


@pytest.mark.parametrize("level", host.levels())
@pytest.mark.parametrize(("dtype", "height"), [("q4_0", 96), ("f32", 45)])
def test_levels(level, dtype, height):
    with host.use_level(level):
        graph = Graph(experts_sum(drawn_ids(3, 2, 4), rows(3, 2, 160), height, dtype))
        assert_alike(graph)
        assert Scheduler(["cpu"]).schedule(graph).explain().splits[0].fusions[0].unwritten == ("products",)


@pytest.mark.parametrize("tokens", [1, 6])
def test_any_number_of_threads(tokens):
    """Also more than there are portions of rows."""
    graph = Graph(experts_sum(drawn_ids(tokens, 2, 4), rows(tokens, 2, 96), 300))
    for threads in (1, 2, 5, 16):
        assert_alike(graph, threads)


def test_rows_are_taken_in_parts_where_there_are_many_columns(monkeypatch):
    graph = Graph(experts_sum(drawn_ids(7, 3, 8), rows(7, 3, 64), 700, experts=8))
    product = graph.outputs[0].srcs[0]
    assert expert_sum.kept_rows(product) == MOST
    monkeypatch.setattr(expert_sum, "KEPT_BYTES", 4 * 21 * 50)
    assert expert_sum.kept_rows(product) == 48 < portion_start(700, 1, 1)
    assert_alike(graph, 1)
    monkeypatch.setattr(expert_sum, "KEPT_BYTES", 1)
    assert expert_sum.kept_rows(product) == 16
    assert_alike(graph)


@pytest.mark.parametrize("dtype", ["q8_0", "f32"])
def test_ids_of_no_expert_give_their_tokens_nan(dtype):
    ids, x = drawn_ids(5, 2, 4), rows(5, 2, 128)
    ids[1, 1], ids[3] = 4, [-1, 9]
    got = assert_alike(Graph(experts_sum(ids, x, 70, dtype)))
    assert np.isnan(got[[1, 3]]).all()
    assert np.isfinite(got[[0, 2, 4]]).all()
    assert np.isnan(assert_alike(Graph(experts_sum(np.full_like(ids, 4), x, 70, dtype)))).all()
    assert np.isnan(assert_alike(Graph(experts_sum(ids[1:2], x[:1], 70, dtype)))).all()


@pytest.mark.parametrize("dtype", ["q8_0", "f32"])
def test_what_is_not_finite_reaches_its_tokens_alone(dtype):
    ids, x, shares = drawn_ids(5, 2, 4), rows(5, 2, 128), np.ones((5, 2), np.float32)
    x[0, 1, 5], x[2, 0, 127], shares[4, 1] = np.nan, np.inf, -np.inf
    got = assert_alike(Graph(experts_sum(ids, x, 70, dtype, shares=graphrt.constant("shares", shares))))
    assert not np.isfinite(got[[0, 2, 4]]).any()
    assert np.isfinite(got[[1, 3]]).all()


def test_weights_that_do_not_lie_side_by_side():
    wide = graphrt.constant("shares", np.random.default_rng(0).random((5, 4, 3), np.float32))
    ids, x = drawn_ids(5, 2, 4), rows(5, 2, 128)
    for shares in (wide[:, 1:3, :1], wide[:, ::2, 1:2], wide[:, 1, :2]):
        assert_alike(Graph(experts_sum(ids, x, 70, shares=shares)))


def test_beside_other_products():
    total = experts_sum(drawn_ids(4, 2, 4), rows(4, 2, 128), 70)
    matrix = graphrt.weight("v", random_blocks(np.random.default_rng(1), (33, 128), dtypes.q8_0))
    graph = Graph([total, ops.mul_mat(matrix, total.srcs[0].srcs[1])])
    assert [name for name, _ in fusions(Scheduler(["cpu"]).schedule(graph))] == ["products at once, weighted sum"]
    for got, want in zip(run(graph, 1), run(graph, 0), strict=True):
        np.testing.assert_array_equal(got, want)


def test_sums_that_are_made_apart():
    """Of what is read elsewhere, of one row for all of a token's experts, and of weights of another dtype."""
    ids, x = drawn_ids(3, 2, 4), rows(3, 2, 128)
    total = experts_sum(ids, x, 70)
    for graph in (
        Graph([total, total.srcs[0]]),
        Graph(experts_sum(ids, x[:, :1], 70)),
        Graph(experts_sum(ids, x, 70, shares=graphrt.constant("shares", np.ones((3, 2), np.float16)))),
    ):
        assert fusions(Scheduler(["cpu"]).schedule(graph)) == []
