"""Attention in the shapes of models: heads that share keys, latents, prompts, cells that nobody sees."""

from __future__ import annotations

import numpy as np
import pytest

from graphrt import Tensor, ops
from graphrt.backends.cuda import mla_attention, registry
from graphrt.backends.cuda.hardware import Hardware, made_for
from graphrt.ops.rope import Rotation
from tests.backends.cuda.on_shim import agrees, drawn, leaf, on_cuda


def where(tokens: int, cells: int, sequences: int = 1) -> list[Tensor]:
    """q_pos, q_seq, cell_pos and cell_seq where tokens are the last cells; sequences lie one behind the other."""
    each = cells // sequences
    of_token = np.arange(tokens) % sequences
    position = each - 1 - (tokens - 1 - np.arange(tokens)) // sequences
    cell = np.arange(cells)
    return [
        leaf(position, "i32"),
        leaf(of_token, "i32"),
        leaf(cell % each, "i32"),
        leaf(1 << np.minimum(cell // each, sequences - 1), "i64"),
    ]


def attention(tokens: int, heads: tuple[int, int], width: int, cells: int, dtype: str, **rest) -> Tensor:
    """Attention of tokens to the cells before them; heads of queries, and of keys and values."""
    sequences, params = rest.pop("sequences", 1), {"scale": width**-0.5, **rest}
    q = drawn(tokens, heads[0], width)
    k, v = drawn(cells, heads[1], width, dtype=dtype, seed=1), drawn(cells, heads[1], width, dtype=dtype, seed=2)
    return ops.attention(q, k, v, *where(tokens, cells, sequences), **params)


def latent_attention(tokens: int, heads: int, cells: int, dtype: str) -> Tensor:
    """Absorbed MLA: one key of 576 elements for all heads, its first 512 are the value."""
    latent = drawn(cells, 1, 576, dtype=dtype, seed=1)
    q = drawn(tokens, heads, 576)
    return ops.attention(q, latent, latent[..., :512], *where(tokens, cells), scale=0.05)


@pytest.mark.parametrize("kind", ["keys and values", "latents"])
@pytest.mark.parametrize("tokens", [1, 130])
def test_blocks_fit_into_the_shared_memory_of_a_desktops_gpu(kind: str, tokens: int):
    node = attention(tokens, (2, 1), 128, 140, "f16") if kind != "latents" else latent_attention(tokens, 3, 140, "f16")
    record = registry.find(ops.attention)
    assert record is not None
    most = dict.fromkeys((99 << 10, 227 << 10), 0)
    for shared in most:
        with made_for(Hardware(processors=30, shared_bytes=shared)):
            most[shared] = max(launch.shared for launch in record.lower(node))
            assert most[shared] <= shared
            agrees(node)
    assert (len(set(most.values())) == 2) is (kind == "latents" and tokens > 1)


@pytest.mark.parametrize("dtype", ["f16", "q8_0", "q4_0", "bf16", "f32"])
def test_a_token_whose_heads_share_keys(dtype: str):
    agrees(attention(1, (8, 2), 128, 700, dtype))


def test_tokens_of_several_sequences():
    agrees(attention(6, (4, 1), 64, 900, "f16", sequences=3))
    agrees(attention(6, (4, 2), 64, 900, "f16", sequences=3, window=100, softcap=20.0))


def test_few_of_very_many_cells():
    cells, cell = 70_000, np.arange(70_000)  # of 60 sequences, one behind the other
    owner = np.int64(1) << np.minimum(cell // 1166, 59)
    places = [leaf([1165, 583, 3], "i32"), leaf([0, 59, 31], "i32"), leaf(cell % 1166, "i32"), leaf(owner, "i64")]
    k, v = drawn(cells, 1, 8, dtype="f16", seed=1), drawn(cells, 1, 8, dtype="f16", seed=2)
    agrees(ops.attention(drawn(3, 2, 8), k, v, *places, scale=0.3, window=300))


@pytest.mark.parametrize("width", [64, 80, 128, 192])
def test_a_prompt(width: int):
    agrees(attention(133, (2, 1), width, 200, "f16"))


@pytest.mark.parametrize(("tokens", "heads"), [(1, 16), (2, 5), (1, 128)])
def test_latents(tokens: int, heads: int):
    agrees(latent_attention(tokens, heads, 200, "f16"))


def test_queries_past_the_range_of_f16():
    latent = latent_attention(1, 16, 40, "f16")
    q, *others = latent.srcs[:7]
    agrees(ops.attention(leaf(q.data * 1e6), *others, scale=1e-7))


def test_keys_that_turn():
    q, k, v, *places = attention(2, (4, 2), 128, 100, "q8_0").srcs[:7]
    shifts = leaf(np.arange(100) * 7 - 300, "i32")
    for mode in ("neox", "normal"):
        rope = Rotation(mode=mode, first=64, dims=64)
        agrees(ops.attention(q, k, v, *places, cell_rotation=shifts, rope=rope, scale=0.1))


@pytest.mark.parametrize("dtype", ["f16", "f32"])
def test_what_nobody_sees_does_not_matter(dtype: str):
    q, k, v, q_pos, q_seq, cell_pos, cell_seq = attention(3, (2, 2), 64, 200, dtype).srcs[:7]
    cell_pos.data[[5, 70, 71, 199]] = -1, -1, 500, -1
    k.data[[5, 71, 199]], v.data[[5, 70, 71]] = np.nan, np.inf
    node = ops.attention(q, k, v, q_pos, q_seq, cell_pos, cell_seq, scale=0.1)
    assert np.isfinite(on_cuda(node)[0]).all()


@pytest.mark.parametrize("dtype", ["f16", "f32"])
def test_nan_stays_with_its_query(dtype: str):
    node = attention(3, (2, 2), 64, 100, dtype)
    node.srcs[0].data[1, 0, 7] = np.nan
    (got,) = on_cuda(node)
    np.testing.assert_array_equal(np.isnan(got).all(axis=-1), np.isnan(got).any(axis=-1))
    np.testing.assert_array_equal(np.isnan(got[..., 0]), [[False, False], [True, False], [False, False]])


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", ["f16", "f32"])
def test_latents_expanded_in_ranges(monkeypatch: pytest.MonkeyPatch, transposed: bool, dtype: str):
    monkeypatch.setattr(mla_attention, "EXPANDED_BYTES", 1)
    keys = drawn(2, 64, 48, dtype=dtype, seed=2) if transposed else drawn(2, 48, 64, dtype=dtype, seed=2)
    cells = 2100 if dtype == "f32" else 1100  # more than there are in 32 chunks
    node = ops.mla_attention(
        drawn(3, 2, 48 + 16),
        drawn(cells, 1, 64 + 16, dtype=dtype, seed=1),
        keys,
        drawn(2, 40, 64, dtype=dtype, seed=3),
        *where(3, cells),
        scale=0.02,
        keys_transposed=transposed,
    )
    agrees(node)


def test_rows_that_are_too_wide_are_refused():
    answer = registry.supports(attention(1, (1, 1), 2048, 3, "f16"))
    assert not answer
    assert "4096 elements" in answer.reason
