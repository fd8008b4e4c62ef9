"""Products of one x, feed-forward layers and experts as one: which nodes are found, and that the results stay."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

import graphrt
from graphrt import Tensor, dtypes, ops
from graphrt.backend import Group, Program, Split
from graphrt.backends.cuda import CudaBackend, products_few
from graphrt.backends.cuda.fusion_products import products_of_one_x
from graphrt.backends.cuda.program import launches_of
from graphrt.backends.cuda.shim_device import ShimDevice
from graphrt.fusion import Readers
from graphrt.numerics import normalised_error
from graphrt.patterns import in_groups
from graphrt.testing import random_blocks
from tests.backends.cuda.on_shim import drawn, leaf, on_reference, results


class Fusing(CudaBackend):
    """The backend with this fusion alone; `found` are the groups that it made last, `launched` its kernels."""

    found: list[str]
    launched: list[str]

    def fuse(self, nodes: Sequence[Tensor], readers: Readers) -> list[Group]:
        groups = in_groups(nodes, readers, (products_of_one_x,), self.alone)
        self.found = [group.fusion or str(group.nodes[0].op and group.nodes[0].op.name) for group in groups]
        return groups

    def compile(self, split: Split) -> Program:
        self.launched = [launch.kernel.unit for group in split.groups for launch in launches_of(group)]
        return super().compile(split)


def fused(*nodes: Tensor) -> tuple[Fusing, list[np.ndarray]]:
    """The backend that made the groups, and the nodes' results."""
    backend = Fusing(ShimDevice(order=7, guarded=True, poisoned=True, checked=True))
    return backend, results(backend, nodes)


def close(got: Sequence[np.ndarray], *nodes: Tensor) -> None:
    for result, expected in zip(got, on_reference(*nodes), strict=True):
        assert normalised_error(result, expected) < 5e-4


def weight(dtype: str, *shape: int, seed: int = 0) -> Tensor:
    found = dtypes.get(dtype)
    scale = shape[-1] ** -0.5  # values stay near 1 from layer to layer
    return graphrt.constant("", random_blocks(np.random.default_rng(seed), shape, found, scale=scale))


def experts(dtype: str, of_down: str, tokens: int, ids: list | Tensor, x: Tensor | None = None) -> Tensor:
    """Experts of 3 x 512, 96 or 256 wide, as models/blocks.py has them."""
    width, hidden = 512, 256 if of_down.endswith("_k") else 96
    each = (drawn(tokens, width) if x is None else x).reshape(tokens, 1, width)
    chosen = ids if isinstance(ids, Tensor) else leaf(np.array(ids, np.int32), "i32")
    gate = ops.mul_mat_id(weight(dtype, 4, hidden, width, seed=1), each, chosen)
    up = ops.mul_mat_id(weight(dtype, 4, hidden, width, seed=2), each, chosen)
    down = ops.mul_mat_id(weight(of_down, 4, 70, hidden, seed=3), ops.swiglu(gate, up), chosen)
    return ops.weighted_sum(down, drawn(tokens, chosen.shape[1], seed=4))


@pytest.mark.parametrize(("dtype", "of_down"), [("q4_0", "q4_0"), ("q4_k", "q5_0"), ("q6_k", "q6_k"), ("q8_0", "q4_1")])
@pytest.mark.parametrize(("tokens", "most_read"), [(1, 1 << 20), (3, 1 << 20), (3, 0)])
def test_experts(dtype: str, of_down: str, tokens: int, most_read: int, monkeypatch: pytest.MonkeyPatch):
    """With x made int8 by a kernel before, or by each block."""
    monkeypatch.setattr(products_few, "MOST_READ", most_read)
    total = experts(dtype, of_down, tokens, [[3, 0, 2], [1, 2, 3], [0, 3, 1]][:tokens])
    backend, got = fused(total)
    is_summed = of_down != "q4_1"
    assert backend.found == ["feed-forward"] + ["weighted_sum"] * (not is_summed)
    launched = ["quantize"] * (not most_read) + ["feed_forward", "feed_forward" if is_summed else "mmvq"]
    assert backend.launched == launched + ["weighted_sum"] * (not is_summed)
    close(got, total)


def test_an_expert_that_is_not_there_spoils_its_token_alone():
    _, (y,) = fused(experts("q4_0", "q4_0", 3, [[3, 0, 2], [1, 4, 3], [-1, 3, 1]]))
    assert np.isfinite(y[0]).all()
    assert np.isnan(y[1:]).all()


@pytest.mark.parametrize(("dtype", "shared_hidden"), [("q4_0", 192), ("q8_0", 96)])
def test_experts_with_those_that_see_every_token(dtype: str, shared_hidden: int):
    """A layer of the norm's result waits for the experts of the same token, and is taken with them."""
    norm = ops.rms_norm(drawn(1, 512), drawn(512, seed=2))
    total = experts(dtype, dtype, 1, ops.top_k(ops.mul_mat(drawn(4, 512, seed=5), norm), k=2), norm)
    gate, up = (ops.mul_mat(weight(dtype, shared_hidden, 512, seed=seed), norm) for seed in (6, 7))
    shared = ops.mul_mat(weight(dtype, 70, shared_hidden, seed=8), ops.swiglu(gate, up))
    both = ops.add(total, shared)
    backend, got = fused(both)
    assert backend.found == ["rms_norm", "mul_mat", "top_k", "feed-forward"]
    assert backend.launched[-2:] == ["feed_forward"] * 2
    assert "mmvq" not in backend.launched
    close(got, both)
    backend, got = fused(both, shared)
    assert "mmvq" in backend.launched
    close(got, both, shared)


@pytest.mark.parametrize("activation", [ops.swiglu, ops.geglu, ops.reglu])
def test_feed_forward_of_one_row(activation: graphrt.Op):
    x = drawn(1, 2304)
    gate, up = (ops.mul_mat(weight("q4_0", 64, 2304, seed=seed), x) for seed in (1, 2))
    y = ops.mul_mat(weight("q4_0", 33, 64, seed=3), activation(gate, up))
    backend, got = fused(y)
    assert backend.found == ["feed-forward"]
    assert backend.launched == ["feed_forward", "mmvq"]
    close(got, y)


def test_halves_of_one_product():
    both = ops.mul_mat(weight("q8_0", 128, 512), drawn(1, 512))
    y = ops.mul_mat(weight("q8_0", 9, 64, seed=3), ops.swiglu(both))
    backend, got = fused(y)
    assert backend.found == ["feed-forward"]
    close(got, y)


def test_what_somebody_else_reads_is_not_kept_inside():
    x = drawn(1, 512)
    gate, up = (ops.mul_mat(weight("q4_0", 64, 512, seed=seed), x) for seed in (1, 2))
    hidden = ops.swiglu(gate, up)
    y = ops.mul_mat(weight("q4_0", 33, 64, seed=3), hidden)
    for read in (gate, hidden):
        backend, got = fused(y, read)
        assert backend.found == ["products of one x", "swiglu", "mul_mat"]
        close(got, y, read)


@pytest.mark.parametrize("rows", [1, 3])
def test_products_of_one_x(rows: int):
    """Three of a dtype are one launch; one of another dtype, and a fourth, are further ones."""
    x = drawn(rows, 768)
    given = [("q4_0", 40), ("q8_0", 9), ("q4_0", 3), ("q4_0", 17), ("q4_0", 65)]
    nodes = [ops.mul_mat(weight(dtype, m, 768, seed=m), x) for dtype, m in given]
    backend, got = fused(*nodes)
    assert backend.found == ["products of one x"]
    assert backend.launched == ["quantize"] * (rows > 1) + ["mmvq"] * 3
    close(got, *nodes)


@pytest.mark.parametrize("width", [512, 2080, 8192])
@pytest.mark.parametrize("adds", [False, True])
def test_the_norm_before_products(width: int, adds: bool):
    """Its result is read by products alone, or by somebody else too."""
    total = ops.add(drawn(3, width), drawn(3, width, seed=1)) if adds else drawn(3, width)
    norm = ops.rms_norm(total, drawn(width, seed=2), eps=1e-5)
    q, k = (ops.mul_mat(weight("q4_0", 10, width, seed=seed), norm) for seed in (3, 4))
    outputs = [q, k, total] if adds else [q, k]
    for nodes in (outputs, [*outputs, norm]):
        backend, got = fused(*nodes)
        assert backend.found == ["norm, products of one x"]
        assert backend.launched == ["norm_codes", "mmvq"]
        close(got, *nodes)


def test_norms_that_cannot_be_taken():
    longer = ops.rms_norm(drawn(2, 8224))
    backend, got = fused(y := ops.mul_mat(weight("q4_0", 10, 8224), longer))
    assert backend.found == ["rms_norm", "mul_mat"]
    close(got, y)
