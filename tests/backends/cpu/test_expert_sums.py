"""Products of many tokens with their experts, and their weighted sums, in one pass; of few: test_expert_sum.py."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphrt
from graphrt import Graph, Scheduler, Tensor, dtypes, ops
from graphrt.backends.cpu import host, matmul
from graphrt.backends.cpu.prepare import PIECE
from graphrt.testing import Draw, normalised_error, random_blocks
from tests.backends.cpu.test_fusion import fusions, run

# What sums in float32 in two orders may differ by; experts that are mixed up differ by a hundred billion times as much.
REORDERED = 1e-11
DTYPES = ["q8_0", "q4_k", "bf16", "f16"]  # two in int8, of which one has least values; in pairs of bf16; in float32


def experts_sum(
    ids: np.ndarray, x: np.ndarray, height: int, dtype: str = "q8_0", experts: int = 4, shares: Tensor | None = None
) -> Tensor:
    """The weighted sum of tokens' products with their experts, which are random."""
    generator, kind = np.random.default_rng(experts * height), dtypes.get(dtype).plain
    shape = (experts, height, x.shape[-1])
    if kind.is_quantized:
        matrices = random_blocks(generator, shape, kind)
    else:
        matrices = dtypes.from_f32(generator.standard_normal(shape, np.float32), kind)
    if dtype != kind.name:
        matrices = dtypes.interleave(matrices)
    products = ops.mul_mat_id(graphrt.weight("w", matrices), graphrt.constant("x", x), graphrt.constant("ids", ids))
    if shares is None:
        shares = graphrt.constant("shares", generator.random(ids.shape, np.float32))
    return ops.weighted_sum(products.named("products"), shares)


def rows(tokens: int, used: int, width: int) -> np.ndarray:
    return np.random.default_rng(tokens).standard_normal((tokens, used, width), np.float32)


def drawn_ids(tokens: int, used: int, experts: int) -> np.ndarray:
    """Distinct experts of each token."""
    order = np.argsort(np.random.default_rng(tokens).random((tokens, experts)), axis=1)
    return np.ascontiguousarray(order[:, :used].astype(np.int32))


def assert_alike(graph: Graph, *, threads: int = 2) -> np.ndarray:
    """It is one fusion, which gives what the nodes give one by one; returns that."""
    assert fusions(Scheduler(["cpu"]).schedule(graph)) == [("weighted sum", ("products", graph.outputs[0].name))]
    (got,), (want,) = run(graph, 1, threads), run(graph, 0)
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want))
    there = np.isfinite(want)
    assert normalised_error(got[there], want[there]) < REORDERED
    return got


@settings(max_examples=40, deadline=None, database=None)
@given(st.integers(0, 2**63))
def test_any_sizes(seed):
    draw = Draw(Random(seed).randint)
    dtype, experts = draw.choice(DTYPES), draw.integer(1, 9)
    used, height = draw.integer(1, min(3, experts)), draw.choice([1, 7, 31, 64, 100, 333])
    width = 256 * draw.integer(2, 3) if dtype == "q4_k" else 32 * draw.integer(2, 40)
    tokens = 9 * experts + draw.integer(0, 40)
    total = experts_sum(drawn_ids(tokens, used, experts), rows(tokens, used, width), height, dtype, experts)
    assert_alike(Graph(total), threads=draw.integer(1, 4))


@pytest.mark.parametrize(("level", "dtype"), [*zip(host.levels()[1:], ["q8_0", "f16"], strict=False)])
def test_lower_levels(level, dtype):
    with host.use_level(level):
        assert_alike(Graph(experts_sum(drawn_ids(41, 2, 4), rows(41, 2, 160), 75, dtype)))


def test_interleaved_matrices():
    assert_alike(Graph(experts_sum(drawn_ids(60, 2, 4), rows(60, 2, 160), 80, "q4_0_r16")))


@pytest.mark.parametrize(("dtype", "width"), [("q8_0", 6144), ("bf16", 2304), ("f16", 2100)])
def test_rows_that_several_panels_hold(dtype, width):
    assert_alike(Graph(experts_sum(drawn_ids(40, 2, 4), rows(40, 2, width), 40, dtype)))


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_slices_of_rows(dtype, monkeypatch):
    graph = Graph(experts_sum(drawn_ids(90, 2, 4), rows(90, 2, 1200), 75, dtype))
    product = graph.outputs[0].srcs[0]
    per_piece = matmul.tiled_columns(product) * matmul.column_bytes(product, PIECE)
    monkeypatch.setattr(matmul, "SLICE_BYTES", 2 * per_piece)
    assert matmul.slice_depth(product) == 2 * PIECE
    got = assert_alike(graph)
    for threads in (1, 3):
        np.testing.assert_array_equal(run(graph, 1, threads)[0], got)


@pytest.mark.parametrize("dtype", ["q8_0", "bf16", "f16"])
def test_any_number_of_threads_gives_the_same_bits(dtype):
    """One expert has half of the columns, so that threads are through at different times, and help."""
    ids = drawn_ids(200, 2, 8)
    ids[::2] = [5, 2]
    graph = Graph(experts_sum(ids, rows(200, 2, 320), 300, dtype, 8))
    want = run(graph, 1, 1)[0]
    for threads in (2, 3, 5, 16):
        plan = Scheduler(["cpu"], threads=threads).plan(graph)
        for _ in range(10):
            np.testing.assert_array_equal(plan.run()[0], want)


@pytest.mark.parametrize("dtype", ["q8_0", "f16"])
def test_experts_with_no_tokens_or_all_of_them(dtype):
    x = rows(60, 2, 128)
    graph = Graph(experts_sum(np.tile(np.array([6, 1], np.int32), (60, 1)), x, 50, dtype, 7))
    assert_alike(graph)
    assert_alike(Graph(experts_sum(np.full((60, 2), 3, np.int32), x, 50, dtype)))


@pytest.mark.parametrize("dtype", ["q8_0", "f16"])
def test_ids_of_no_expert_give_their_tokens_nan(dtype):
    ids, x = drawn_ids(50, 2, 4), rows(50, 2, 128)
    ids[7, 1], ids[20] = 4, [-1, 9]
    got = assert_alike(Graph(experts_sum(ids, x, 70, dtype)))
    assert np.isnan(got[[7, 20]]).all()
    assert np.isfinite(np.delete(got, [7, 20], axis=0)).all()
    assert np.isnan(assert_alike(Graph(experts_sum(np.full_like(ids, 4), x, 70, dtype)))).all()


@pytest.mark.parametrize("dtype", ["q8_0", "bf16", "f16"])
def test_what_is_not_finite_reaches_its_tokens_alone(dtype):
    ids, x = drawn_ids(50, 2, 4), rows(50, 2, 128)
    x[3, 0, 5], x[12, 1, 127], x[30, 1, 64] = np.nan, np.inf, -np.inf
    shares = np.ones((50, 2), np.float32)
    shares[40, 1], shares[45, 0], shares[12, 1] = np.nan, np.inf, 0
    got = assert_alike(Graph(experts_sum(ids, x, 70, dtype, shares=graphrt.constant("shares", shares))))
    assert not np.isfinite(got[[3, 12, 30, 40, 45]]).any()
    assert np.isnan(got[[3, 12, 40]]).all()
    assert np.isfinite(np.delete(got, [3, 12, 30, 40, 45], axis=0)).all()


def test_beside_another_product_and_with_weights_as_columns():
    shares = graphrt.constant("shares", np.random.default_rng(0).random((40, 2, 1), np.float32))
    total = experts_sum(drawn_ids(40, 2, 4), rows(40, 2, 128), 70, shares=shares)
    other = ops.mul_mat(
        graphrt.weight("v", random_blocks(np.random.default_rng(1), (33, 128), dtypes.q8_0)), total.srcs[0].srcs[1]
    )
    graph = Graph([total, other])
    assert [name for name, _ in fusions(Scheduler(["cpu"]).schedule(graph))] == ["products at once, weighted sum"]
    for got, want in zip(run(graph, 1), run(graph, 0), strict=True):
        assert normalised_error(got, want) < REORDERED


def test_the_products_have_no_memory():
    graph = Graph(experts_sum(drawn_ids(512, 2, 4), rows(512, 2, 64), 512))
    fused, alone = (Scheduler(["cpu"], threads=1, fuse=fuse).plan(graph) for fuse in (1, 0))
    assert fused.schedule.explain().splits[0].fusions[0].unwritten == ("products",)
    assert alone.compute_bytes - fused.compute_bytes > 0.9 * graph.outputs[0].srcs[0].nbytes


def test_sums_that_are_made_apart():
    """Of what is read elsewhere, of one row for all of a token's experts, and of other weights."""
    ids, x = drawn_ids(40, 2, 4), rows(40, 2, 128)
    total = experts_sum(ids, x, 70)
    wide = graphrt.constant("shares", np.ones((40, 4), np.float32))
    apart = [
        Graph([total, total.srcs[0]]),
        Graph(experts_sum(ids, x[:, :1], 70)),
        Graph(experts_sum(ids, x, 70, shares=wide[:, :2])),
        Graph(experts_sum(ids, x, 70, shares=graphrt.constant("shares", np.ones((40, 2), np.float16)))),
    ]
    for graph in apart:
        assert fusions(Scheduler(["cpu"]).schedule(graph)) == []
