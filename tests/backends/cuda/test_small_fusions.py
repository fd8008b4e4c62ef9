"""Fusions of small ops: which nodes they find, and that their results are those of the nodes one by one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

import graphrt
from graphrt import Tensor, ops
from graphrt.backend import Group
from graphrt.backends.cuda import CudaBackend
from graphrt.backends.cuda.shim_device import ShimDevice
from graphrt.fusion import Readers
from graphrt.models.routing import Routing
from graphrt.numerics import normalised_error
from tests.backends.cuda.on_shim import drawn, leaf, on_reference, results
from tests.backends.cuda.test_products_many import drawn as products_drawn


class Watched(CudaBackend):
    """The backend; `found` tells the groups that it made last."""

    found: list[str]

    def fuse(self, nodes: Sequence[Tensor], readers: Readers) -> list[Group]:
        groups = super().fuse(nodes, readers)
        self.found = [group.fusion or group.nodes[0].op.name for group in groups if group.nodes[0].op]
        return groups


def fused(*nodes: Tensor) -> tuple[list[str], list[np.ndarray]]:
    """The groups that were made, and the nodes' results."""
    backend = Watched(ShimDevice(order=7, guarded=True, poisoned=True, checked=True))
    found = results(backend, nodes)
    return backend.found, found


@pytest.mark.parametrize(("length", "dtype"), [(136, "f32"), (8201, "f32"), (4096, "bf16"), (8704, "f16")])
def test_add_and_norm(length: int, dtype: str):
    total = ops.add(drawn(3, length, dtype=dtype), drawn(3, length, dtype="f32", seed=1))
    norm = ops.rms_norm(total, drawn(length, seed=2))
    groups, got = fused(total, norm)
    assert groups == ["add and norm"]
    close(got, total, norm)


STEPS = {"f32": 1e-6, "f16": 2**-10, "bf16": 2**-7}
POSITIONS, CELLS = [5, 6, 900], [6, 0, 3]
TOKENS = len(POSITIONS)


def close(got: Sequence[np.ndarray], *nodes: Tensor) -> None:
    """The results are those of the reference, within a step of each dtype."""
    for result, node, expected in zip(got, nodes, on_reference(*nodes), strict=True):
        if node.dtype.is_quantized:
            assert normalised_error(result, expected) <= node.op.tolerance_of(node)
            continue
        pair = (result.astype(np.float64), expected.astype(np.float64))
        np.testing.assert_allclose(*pair, rtol=STEPS[node.dtype.name], atol=1e-6)


@pytest.mark.parametrize(("length", "dtype"), [(136, "f32"), (8704, "bf16"), (37, "f16")])
def test_two_adds_and_norm(length: int, dtype: str):
    inner = ops.add(drawn(3, length, dtype=dtype), drawn(3, length, dtype="f16", seed=1))
    total = ops.add(drawn(3, length, seed=2), inner)
    norm = ops.rms_norm(total, drawn(length, seed=3))
    groups, got = fused(total, norm)
    assert groups == ["adds and norm"]
    close(got, total, norm)


def router_products(rows: int, length: int, outputs: int, dtype: str = "f32") -> list[Tensor]:
    """A sum, its norm, and the norm's products with a router's weights."""
    total = ops.add(ops.silu(drawn(rows, length)), ops.silu(drawn(rows, length, seed=1)))
    norm = ops.rms_norm(total, drawn(length, seed=2))
    return [total, norm, ops.mul_mat(drawn(outputs, length, dtype=dtype, seed=3), norm)]


@pytest.mark.parametrize(("rows", "length", "outputs"), [(1, 2048, 64), (4, 4096, 5), (2, 8192, 3), (3, 136, 256)])
@pytest.mark.parametrize("order", [0, 1, 7])
def test_add_norm_and_a_routers_products(rows: int, length: int, outputs: int, order: int):
    nodes = router_products(rows, length, outputs)
    backend = Watched(ShimDevice(order=order, guarded=True, poisoned=True, checked=True))
    got = results(backend, nodes)
    assert "add, norm and products" in backend.found
    close(got[:2], *nodes[:2])
    assert normalised_error(got[2], on_reference(*nodes)[2]) <= 1e-6


@pytest.mark.parametrize("other", [(5, 64, 3, "f32"), (1, 64, 3, "bf16"), (1, 62, 3, "f32"), (1, 64, 513, "f32")])
def test_products_that_are_made_apart(other: tuple):
    """Of too many rows, with weights of another dtype, of rows that are no eights, too many."""
    nodes = router_products(*other)
    groups, got = fused(*nodes)
    assert "add, norm and products" not in groups
    for result, expected in zip(got, on_reference(*nodes), strict=True):
        assert normalised_error(result, expected) <= 1e-3


def test_an_add_of_a_sum_to_itself_is_left_alone():
    inner = ops.add(drawn(2, 64), drawn(2, 64, seed=1))
    total = ops.add(inner, inner)
    norm = ops.rms_norm(total)
    groups, got = fused(total, norm)
    assert groups == ["add", "add and norm"]
    close(got, total, norm)


@pytest.mark.parametrize("mode", ["normal", "neox"])
@pytest.mark.parametrize("cache", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_queries_keys_and_values(cache: str, mode: str):
    positions, cells, turns = leaf(POSITIONS, "i32"), leaf(CELLS, "i64"), {"mode": mode, "dims": 48, "first": 8}
    q = ops.rope(drawn(TOKENS, 5, 64), positions, **turns)
    k = ops.rope(drawn(TOKENS, 2, 64, seed=1), positions, **turns)
    keys = ops.set_rows(graphrt.state("k", (7, 128), cache), k.reshape(TOKENS, 128), cells)
    v = drawn(TOKENS, 2, 64, seed=2)
    values = ops.set_rows(graphrt.state("v", (7, 128), cache), v.reshape(TOKENS, 128), cells)
    groups, got = fused(q, keys, values)
    assert groups == ["queries and cells"]
    close(got, q, keys, values)


@pytest.mark.parametrize("cache", ["f16", "q8_0"])
def test_queries_latents_and_their_keys(cache: str):
    positions, cells, both = leaf(POSITIONS, "i32"), leaf(CELLS, "i64"), drawn(TOKENS, 1, 576 + 64, seed=1)
    q = ops.rope(drawn(TOKENS, 4, 192), positions, first=128)
    latent = ops.rms_norm(both[..., :576], drawn(576, seed=2))
    k_pe = ops.rope(both[..., 576:], positions)
    table = graphrt.state("latent", (7, 640), cache)
    after = ops.set_rows(table, latent.reshape(TOKENS, 576), cells, first=0)
    written = ops.set_rows(after, k_pe.reshape(TOKENS, 64), cells, first=576)
    groups, got = fused(q, written)
    assert groups == ["queries and cells"]
    close(got, q, written)


HEADS, NOPE, ROPE, RANK = 5, 128, 64, 96


def absorbed_queries(
    positions: Tensor | None = None, tokens: int = 1, dtype: str = "q4_0", nope: slice = slice(NOPE), **turns
) -> list[Tensor]:
    """Queries, their product with a matrix of each head, and both joined, as MLA's absorbed attention wants them."""
    positions = positions or leaf(POSITIONS[:tokens], "i32")
    q = ops.rope(drawn(tokens, HEADS, NOPE + ROPE), positions, **{"first": NOPE, **turns})
    w = products_drawn((HEADS, RANK, NOPE), dtype)
    product = ops.mul_mat(w, q[..., nope].permute(1, 0, 2))
    return [q, product, ops.concat(product.permute(1, 0, 2), q[..., NOPE:], axis=-1)]


@pytest.mark.parametrize("dtype", ["q4_0", "q8_0", "bf16", "f32"])
@pytest.mark.parametrize("turns", [{"mode": "normal"}, {"mode": "neox", "dims": 48}], ids=str)
def test_absorbed_queries(dtype: str, turns: dict):
    joined = absorbed_queries(dtype=dtype, **turns)[-1]
    groups, (got,) = fused(joined)
    (expected,) = on_reference(joined)
    assert groups == ["absorbed queries and cells"]
    assert normalised_error(got, expected) <= 5e-4
    assert normalised_error(got[..., RANK:], expected[..., RANK:]) <= 1e-6


def test_absorbed_queries_and_cells():
    positions, cells, both = leaf(POSITIONS[:1], "i32"), leaf(CELLS[:1], "i64"), drawn(1, 1, 64 + ROPE, seed=1)
    joined = absorbed_queries(positions)[-1]
    latent, k_pe = ops.rms_norm(both[..., :64], drawn(64, seed=2)), ops.rope(both[..., 64:], positions)
    after = ops.set_rows(graphrt.state("latent", (7, 64 + ROPE), "f16"), latent.reshape(1, 64), cells, first=0)
    written = ops.set_rows(after, k_pe.reshape(1, ROPE), cells, first=64)
    groups, got = fused(joined, written)
    assert groups == ["absorbed queries and cells"]
    for result, expected in zip(got, on_reference(joined, written), strict=True):
        assert normalised_error(result, expected) <= 1e-3


@pytest.mark.parametrize("kept", [0, 1])
def test_queries_that_others_read_are_not_absorbed_at_once(kept: int):
    nodes = absorbed_queries()
    groups, got = fused(nodes[kept], nodes[-1])
    assert "absorbed queries and cells" not in groups
    for result, expected in zip(got, on_reference(nodes[kept], nodes[-1]), strict=True):
        assert normalised_error(result, expected) <= 5e-4


@pytest.mark.parametrize(
    "other", [{"tokens": 2}, {"first": 32}, {"nope": slice(32, 160)}, {"nope": slice(64, 192)}], ids=str
)
def test_other_parts_of_queries_are_not_absorbed_at_once(other: dict):
    """Of several tokens, where the product reads what turns, or the end begins elsewhere."""
    joined = absorbed_queries(**other)[-1]
    groups, (got,) = fused(joined)
    assert "absorbed queries and cells" not in groups
    assert normalised_error(got, *on_reference(joined)) <= 5e-4


def test_rows_too_long_to_be_held_are_normed_apart():
    latent = ops.rms_norm(drawn(TOKENS, 1032), None)
    written = ops.set_rows(graphrt.state("latent", (7, 1032)), latent, leaf(CELLS, "i64"))
    groups, got = fused(written)
    assert groups == ["rms_norm", "set_rows"]
    close(got, written)


@pytest.mark.parametrize("op", [lambda m: ops.rope(m, leaf(POSITIONS, "i32")), ops.rms_norm], ids=["rope", "rms_norm"])
def test_rows_are_not_stored_over_those_that_others_read(op):
    table = graphrt.state("table", data=np.random.default_rng(0).standard_normal((TOKENS, 2, 32)).astype(np.float32))
    made = op(table).reshape(TOKENS, 64)
    stored = ops.set_rows(table.reshape(TOKENS, 64), made, leaf(np.arange(TOKENS)[::-1].copy(), "i64"))
    groups, got = fused(stored)
    assert groups[-1] == "set_rows"
    close(got, stored)


def test_cells_that_do_not_exist_are_not_written():
    k = ops.rope(drawn(TOKENS, 2, 64), leaf(POSITIONS, "i32"))
    cache = graphrt.state("cache", (7, 128))
    stored = ops.set_rows(cache[1:6], k.reshape(TOKENS, 128), leaf([5, -1, 4], "i64"))
    groups, (got,) = fused(stored)
    assert groups == ["queries and cells"]
    np.testing.assert_array_equal(got.any(axis=-1), [False, False, False, False, True])


def test_keys_that_others_read_are_kept():
    k = ops.rope(drawn(TOKENS, 2, 64), leaf(POSITIONS, "i32"))
    stored = ops.set_rows(graphrt.state("cache", (7, 128)), k.reshape(TOKENS, 128), leaf(CELLS, "i64"))
    groups, got = fused(stored, k)
    assert groups == ["rope", "set_rows"]
    close(got, stored, k)


RULES = {
    "mixtral": Routing(8, 2, normalise=True),
    "v2_lite": Routing(64, 6),
    "v2": Routing(160, 6, groups=8, groups_used=3, group_score="max", scale=16.0),
    "v3": Routing(256, 8, gate="sigmoid", normalise=True, scale=2.5, groups=8, groups_used=4),
    "softmax of the chosen": Routing(32, 4, gate="softmax_weight"),
    "softplus": Routing(384, 6, gate="sqrt_softplus", normalise=True),
}


@pytest.mark.parametrize("name", RULES)
def test_router(name: str):
    rule, tokens = RULES[name], 5
    values = np.random.default_rng(1).standard_normal((tokens, rule.experts)).astype(np.float32)
    values[1] = 0.5  # ties throughout
    values[2, 3] = np.nan
    bias = drawn(rule.experts, seed=2) if name in ("v3", "softplus") else None
    ids, weights = rule(leaf(values), bias, 0)
    groups, (got_ids, got_weights) = fused(ids, weights)
    assert groups == ["router"]
    expected_ids, expected_weights = on_reference(ids, weights)
    np.testing.assert_array_equal(got_ids, expected_ids)
    np.testing.assert_allclose(got_weights, expected_weights, rtol=2e-6)


def test_scores_that_others_read_are_kept():
    ids, weights = RULES["v2_lite"](drawn(2, 64), None, 0)
    scores = weights.srcs[0].srcs[0].srcs[0]
    groups, got = fused(ids, weights, scores)
    assert groups == ["soft_max", "router"], "the choice alone is fused"
    for result, expected in zip(got, on_reference(ids, weights, scores), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-6)
