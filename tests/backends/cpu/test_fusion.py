"""Nodes that the CPU backend runs as one: each pattern is found, and gives what its nodes give one by one."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import graphrt
from graphrt import Graph, Scheduler, Tensor, dtypes, ops
from graphrt.backends.cpu import host, matmat, matmul
from graphrt.backends.cpu.tile import tile
from graphrt.models.batch import Batch
from graphrt.models.synth import synthesise
from graphrt.schedule import Schedule
from graphrt.testing import Draw, normalised_error
from tests.core.oracle import difference, tolerance
from tests.core.random_graphs import random_graph


def random(name: str, *shape: int, dtype: str = "f32") -> Tensor:
    """A constant of random numbers."""
    values = np.random.default_rng(sum(map(ord, name))).standard_normal(shape, np.float32)
    return graphrt.constant(name, dtypes.from_f32(values, dtypes.get(dtype)))


def fusions(schedule: Schedule) -> list[tuple[str, tuple[str, ...]]]:
    """Names of the fusions and of their nodes."""
    return [(fusion.fusion, fusion.nodes) for part in schedule.explain().splits for fusion in part.fusions]


def run(graph: Graph, fuse: int, threads: int = 2) -> list[np.ndarray]:
    return Scheduler(["cpu"], threads=threads, fuse=fuse).plan(graph).run()


def assert_alike(graph: Graph, *names: str) -> None:
    """The graph has fusions of these names; fused and not it gives the same, bit for bit."""
    assert [name for name, _ in fusions(Scheduler(["cpu"]).schedule(graph))] == list(names)
    for threads in (1, 2):
        for got, want in zip(run(graph, 1, threads), run(graph, 0), strict=True):
            np.testing.assert_array_equal(got, want)


@settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**63))
def test_random_graphs_give_the_same_bit_for_bit(seed):
    """But for weighted sums of many tokens, which add experts in another order."""
    case = random_graph(Draw(Random(seed).randint))
    fused, alone = (
        Scheduler(["cpu"], threads=2, fuse=fuse).plan(random_graph(Draw(Random(seed).randint)).graph) for fuse in (1, 0)
    )
    has_sums = any("weighted sum" in name for name, _ in fusions(fused.schedule))
    for got, want, coarse in zip(fused.run(case.inputs), alone.run(case.inputs), case.coarse, strict=True):
        if has_sums:
            assert difference(got, want) <= tolerance(coarse)
        else:
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("preset", ["tiny-mixtral", "tiny-deepseek2"])
def test_models_give_the_same_bit_for_bit(preset, tmp_path):
    path = synthesise(preset, tmp_path / "model.gguf", layers=2, dtype="q8_0")

    def logits(fuse: int) -> np.ndarray:
        with graphrt.load(path, n_ctx=256, threads=2, fuse=fuse) as model:
            context = model.new_context()
            prompt = context.decode(Batch.of([1, 2, 3, 4, 5], all_logits=True)).copy()
            return np.concatenate([prompt, context.decode(Batch.of([6], 5))])

    np.testing.assert_array_equal(logits(1), logits(0))


# -- add and norm ------------------------------------------------------------------------------------------------------


def residual(a: Tensor, b: Tensor, weight: Tensor | None = None) -> Graph:
    """The sum, doubled, and its norm."""
    total = ops.add(a, b).named("sum")
    return Graph([ops.rms_norm(total, weight).named("norm"), ops.scale(total, factor=2.0)])


@pytest.mark.parametrize("level", host.levels())
@pytest.mark.parametrize("shape", [(1, 64), (7, 2500)])
def test_add_and_norm(level, shape):
    with host.use_level(level):
        assert_alike(residual(random("a", *shape), random("b", *shape), random("w", shape[-1])), "add and norm")


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_add_and_norm_of_other_dtypes_and_strides(dtype):
    a = random("a", 40, 6, dtype=dtype).permute(1, 0)
    assert_alike(residual(a, random("b", 1, 40)), "add and norm")
    assert_alike(residual(ops.cont(a), a, random("w", 40)), "add and norm")


def test_a_norm_may_lie_over_a_term_of_the_sum():
    def graph() -> Graph:
        x, y = ops.neg(random("x", 4, 100)).named("x'"), ops.neg(random("y", 4, 100)).named("y'")
        return residual(x, y, random("w", 100))

    memory = Scheduler(["cpu"]).schedule(graph()).memory
    assert {(node.name, donor.name) for node, donor in memory.inplace.items()} >= {("sum", "x'"), ("norm", "y'")}
    assert_alike(graph(), "add and norm")


def test_no_add_and_norm_where_nothing_else_reads_the_sum():
    total = ops.add(random("a", 2, 8), random("b", 2, 8))
    assert fusions(Scheduler(["cpu"]).schedule(Graph(ops.rms_norm(total)))) == []


# -- products at once --------------------------------------------------------------------------------------------------


def weight(name: str, *shape: int, dtype: str = "f32") -> Tensor:
    values = np.random.default_rng(sum(map(ord, name))).standard_normal(shape, np.float32)
    return graphrt.weight(name, dtypes.from_f32(values, dtypes.get(dtype)))


def products(x: Tensor, *types: str) -> list[Tensor]:
    """A product with a weight of each type; the transposed one where a type begins with t."""
    results = []
    for i, dtype in enumerate(types):
        if dtype.startswith("t"):
            results.append(ops.mul_mat_transposed(weight(f"t{i}", x.shape[-1], 96, dtype=dtype[1:]), x))
        else:
            results.append(ops.mul_mat(weight(f"w{i}", 70 + i, x.shape[-1], dtype=dtype), x))
    return [result.named(f"product {i}") for i, result in enumerate(results)]


@pytest.mark.parametrize("level", host.levels())
@pytest.mark.parametrize("tokens", [1, 3])
def test_products_of_one_x(level, tokens):
    with host.use_level(level):
        x = ops.silu(random("x", tokens, 256))
        graph = Graph(products(x, "q8_0", "f32", "q4_0", "tf32", "q8_0"))
        assert_alike(graph, "products at once")


def test_products_of_one_x_are_found_behind_others_that_wait():
    x = ops.silu(random("x", 2, 64))
    q, k, v = products(x, "q8_0", "q8_0", "f16")
    graph = Graph([ops.silu(ops.sqr(q)), ops.neg(k), v])
    assert [node.op.name for node in graph.nodes][:3] == ["silu", "mul_mat", "sqr"]
    assert fusions(Scheduler(["cpu"]).schedule(graph)) == [("products at once", (q.name, k.name, v.name))]
    assert_alike(graph, "products at once")


def test_a_product_that_waits_for_another_is_not_taken_with_it():
    x = random("x", 1, 64)
    first = ops.mul_mat(weight("w", 64, 64), x)
    routed = ops.mul_mat_id(weight("e", 4, 32, 64), x.reshape(1, 1, 64), ops.top_k(first[:, :4], k=2))
    assert fusions(Scheduler(["cpu"]).schedule(Graph([routed]))) == []
    assert_alike(Graph([routed, first]))


def test_products_of_experts_read_the_rows_of_a_plain_product():
    x, ids = ops.silu(random("x", 3, 64)), graphrt.constant("ids", np.array([[0, 3], [1, 0], [2, 7]], np.int32))
    each = x.reshape(3, 1, 64)
    gate, up = (ops.mul_mat_id(weight(f"{name}s", 4, 40, 64, dtype="q8_0"), each, ids) for name in ("gate", "up"))
    plain = ops.mul_mat(weight("w", 48, 64, dtype="q8_0"), x)
    graph = Graph([ops.swiglu(gate, up), plain])
    assert_alike(graph, "products at once, gated unit")
    out = run(graph, 1)[0]
    assert np.isnan(out[2, 1]).all(), "expert 7 does not exist"
    assert np.isfinite(out[:2]).all()


def test_products_of_several_x_at_once():
    x, y = ops.silu(random("x", 2, 64)), random("y", 2, 96)
    graph = Graph([*products(x, "q8_0", "q4_0"), ops.mul_mat(weight("v", 40, 96, dtype="q8_0"), y)])
    assert_alike(graph, "products at once")


@pytest.mark.parametrize("level", host.levels())
def test_products_of_a_prompt_at_once(level):
    with host.use_level(level):
        x = random("x", 40, 256)
        assert_alike(Graph(products(x, "q8_0", "q4_0")), "products at once")


def test_products_of_experts_of_a_prompt_at_once():
    x, ids = random("x", 64, 1, 256), graphrt.constant("ids", (np.arange(128, dtype=np.int32) * 7 % 4).reshape(64, 2))
    gate, up = (ops.mul_mat_id(weight(name, 4, 70, 256, dtype="q8_0"), x, ids) for name in ("gate", "up"))
    assert_alike(Graph([gate, up]), "products at once")
    assert_alike(Graph(ops.swiglu(gate, up)), "gated unit")


def test_products_of_floats_with_many_columns_are_taken_alone():
    x = random("x", 200, 64)
    assert fusions(Scheduler(["cpu"]).schedule(Graph(products(x, "f32", "f32")))) == []


def test_what_would_be_kept_for_long_is_not_taken_before_its_turn():
    x = ops.silu(random("x", 512, 256))
    first, other = products(x, "q8_0", "q8_0")
    large = ops.mul_mat(weight("large", 600, 256, dtype="q8_0"), x).named("large")
    graph = Graph([ops.sqr(first), other, large])
    assert fusions(Scheduler(["cpu"]).schedule(graph)) == [("products at once", (first.name, other.name))]


def test_products_over_an_x_in_batches_and_strides():
    x = random("x", 2, 5, 64).permute(1, 0, 2)[:2]
    graph = Graph([ops.mul_mat(weight("a", 2, 33, 64, dtype="f16"), x), ops.mul_mat(weight("b", 12, 64), x)])
    assert_alike(graph, "products at once")


# -- keys into the cache ----------------------------------------------------------------------------------------------


def stored(rope: Tensor, dtype: str, cells: list[int], first: int | None = None, width: int = 0) -> Tensor:
    """The table after the rope's rows, all heads as one, are written to these cells."""
    table = graphrt.state("cache", (9, width or rope.shape[1] * rope.shape[2]), dtype)
    rows = rope.reshape(rope.shape[0], rope.shape[1] * rope.shape[2])
    return ops.set_rows(table, rows, graphrt.constant("cells", np.array(cells, np.int64)), first=first)


@pytest.mark.parametrize("level", host.levels())
@pytest.mark.parametrize("mode", ["normal", "neox"])
@pytest.mark.parametrize("dtype", ["f16", "f32", "bf16"])
def test_rope_into_cells(level, mode, dtype):
    positions = graphrt.constant("pos", np.array([5, 90, 7], np.int32))
    with host.use_level(level):
        for part in ({}, {"first": 8, "dims": 24}):
            turned = ops.rope(random("k", 3, 2, 40), positions, mode=mode, **part)
            assert_alike(Graph(stored(turned, dtype, [4, 0, 8])), "rope and cells")
            assert_alike(Graph(stored(turned, dtype, [4, 0, 8], 16, 100)), "rope and cells")


def test_rope_of_a_token_without_a_cell_is_not_written():
    positions = graphrt.constant("pos", np.array([5, 90], np.int32))
    graph = Graph(stored(ops.rope(random("k", 2, 2, 64), positions), "f32", [3, 9]))
    assert_alike(graph, "rope and cells")
    table = run(graph, 1)[0]
    assert np.count_nonzero(table.any(axis=1)) == 1


def test_no_rope_into_cells_that_it_reads():
    table = graphrt.state("table", data=np.random.default_rng(0).standard_normal((4, 2, 32)).astype(np.float32))
    turned = ops.rope(table, graphrt.constant("pos", np.array([5, 90, 7, 1], np.int32)))
    cells = graphrt.constant("cells", np.array([3, 2, 1, 0], np.int64))
    assert not fusions(
        Scheduler(["cpu"]).schedule(Graph(ops.set_rows(table.reshape(4, 64), turned.reshape(4, 64), cells)))
    )


def test_no_rope_into_cells_of_what_is_read_elsewhere_or_of_blocks():
    turned = ops.rope(random("k", 2, 2, 64), graphrt.constant("pos", np.array([5, 90], np.int32)))
    assert_alike(Graph([stored(turned, "f16", [3, 0]), turned]))
    assert_alike(Graph(stored(turned, "q8_0", [3, 0])))


# -- gated units -------------------------------------------------------------------------------------------------------


def halves(x: Tensor, rows: int, dtype: str) -> list[Tensor]:
    """The gate's and the other product."""
    return [ops.mul_mat(weight(name, rows, x.shape[-1], dtype=dtype), x).named(name) for name in ("gate", "up")]


@pytest.mark.parametrize("level", host.levels())
@pytest.mark.parametrize(("dtype", "rows"), [("q8_0", 96), ("f32", 45)])
def test_gated_unit(level, dtype, rows):
    with host.use_level(level):
        graph = Graph(ops.swiglu(*halves(random("x", 1, 160), rows, dtype)))
        assert_alike(graph, "gated unit")
        assert Scheduler(["cpu"]).schedule(graph).explain().splits[0].fusions[0].unwritten == ("gate", "up")


@pytest.mark.parametrize("columns", [2, 3, 6])
@pytest.mark.parametrize(("dtype", "rows"), [("q8_0", 150), ("f16", 45)])
def test_gated_unit_of_few_columns(columns, dtype, rows):
    assert_alike(Graph(ops.swiglu(*halves(random("x", columns, 256), rows, dtype))), "gated unit")


OF_MANY_COLUMNS = [("q8_0", 100, 160), ("q5_1", 70, 5120), ("q4_0", 33, 64), ("bf16", 70, 2499), ("f16", 45, 1100)]


@pytest.mark.parametrize("level", host.levels())
@pytest.mark.parametrize(("dtype", "rows", "width"), OF_MANY_COLUMNS)
def test_gated_unit_of_many_columns(level, dtype, rows, width):
    with host.use_level(level):
        graph = Graph(ops.swiglu(*halves(random("x", 29, width), rows, dtype)))
        assert_alike(graph, "gated unit")


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_gated_unit_of_more_columns_than_sums_are_kept_of(dtype):
    columns = matmat.TILES * tile().columns + 17
    assert_alike(Graph(ops.swiglu(*halves(random("x", columns, 1100), 9, dtype))), "gated unit")


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("width", [48, 1100])
def test_gated_unit_of_what_is_not_finite(dtype, width):
    x = np.random.default_rng(0).standard_normal((30, width), np.float32)
    x[3, 5], x[12, -1], x[20, 0] = np.nan, np.inf, -np.inf
    graph = Graph(ops.swiglu(*halves(graphrt.constant("x", x), 40, dtype)))
    assert_alike(graph, "gated unit")
    assert np.isnan(run(graph, 1)[0][3]).all()


def test_gated_unit_of_an_x_that_each_product_alone_takes_in_slices(monkeypatch):
    gate, up = halves(random("x", 30, 2100), 40, "f16")
    of_a_panel = matmul.tiled_columns(gate) * matmul.column_bytes(gate, matmat.DEPTH)
    monkeypatch.setattr(matmul, "SLICE_BYTES", of_a_panel)
    assert matmul.slice_depth(gate) == 768
    graph = Graph(ops.swiglu(gate, up))
    assert normalised_error(run(graph, 1)[0], run(graph, 0)[0]) < 1e-11


OF_EXPERTS = [("swiglu", "q4_0", 64), ("geglu", "q4_0", 64), ("reglu", "q4_0", 64), ("swiglu", "bf16", 1100)]


@pytest.mark.parametrize(("unit", "dtype", "width"), [*OF_EXPERTS, ("geglu", "f16", 1100)])
def test_gated_units_of_many_tokens_experts(unit, dtype, width):
    tokens, experts = 40, 3
    ids = np.random.default_rng(0).permuted(np.tile(np.arange(experts, dtype=np.int32), (tokens, 1)), axis=1)[:, :2]
    ids[7, 1] = 5
    each = ops.silu(random("x", tokens, width)).reshape(tokens, 1, width)
    chosen = graphrt.constant("ids", np.ascontiguousarray(ids))
    halves = (ops.mul_mat_id(weight(name, experts, 75, width, dtype=dtype), each, chosen) for name in ("gs", "us"))
    graph = Graph(getattr(ops, unit)(*halves))
    assert_alike(graph, "gated unit")
    out = run(graph, 1)[0]
    assert np.isnan(out[7, 1]).all(), "expert 5 does not exist"
    assert np.isfinite(np.delete(out, 7, axis=0)).all()


def test_gated_units_of_experts_beside_other_products():
    x, ids = ops.silu(random("x", 1, 64)), graphrt.constant("ids", np.array([[3, 9, 0]], np.int32))
    each = x.reshape(1, 1, 64)
    gate, up = (ops.mul_mat_id(weight(f"{name}s", 4, 40, 64, dtype="q8_0"), each, ids) for name in ("gate", "up"))
    other = ops.geglu(*halves(x, 40, "f16"))
    graph = Graph([ops.swiglu(gate, up), other, *products(x, "f32")])
    assert_alike(graph, "products at once, gated unit")
    out = run(graph, 1)[0]
    assert np.isnan(out[0, 1]).all(), "expert 9 does not exist"
    assert np.isfinite(out[0, [0, 2]]).all()


def test_no_gated_unit_of_what_is_read_elsewhere_or_of_weights_that_differ():
    gate, up = halves(random("x", 1, 64), 40, "f32")
    assert_alike(Graph([ops.swiglu(gate, up), gate]), "products at once")
    x = random("x", 1, 64)
    mixed = [ops.mul_mat(weight(dtype, 40, 64, dtype=dtype), x) for dtype in ("f32", "f16")]
    assert_alike(Graph(ops.swiglu(*mixed)), "products at once")
    of_two = [ops.mul_mat(weight(f"w_{name}", 40, 64, dtype="q8_0"), random(name, 20, 64)) for name in "ab"]
    assert_alike(Graph(ops.swiglu(*of_two)), "products at once")
    too_wide_for_a_panel = random("x", 20, 7168)
    assert_alike(Graph(ops.swiglu(*halves(too_wide_for_a_panel, 9, "q8_0"))), "products at once")
    one = ops.mul_mat(weight("w", 40, 64), x)
    assert_alike(Graph(ops.swiglu(one, one)))
