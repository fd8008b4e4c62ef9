"""Kernel of mla_attention against its reference, and against attention to the keys and values that it spares.

T tokens, H heads, N cells; r width of a latent, dn and dr of a key without and with rotation, dv of a value.
"""

import numpy as np
import pytest

import graphrt
from graphrt import dtypes, ops
from graphrt.backends.cpu import bf16, host
from graphrt.backends.cpu.int8_form import has_byte_products
from graphrt.backends.cpu.mla_layout import Layout
from graphrt.ops.rope import Rotation
from graphrt.testing import check, normalised_error


@pytest.mark.parametrize("threads", [1, 3])
def test_kernel_agrees_with_the_reference(threads):
    report = check(ops.mla_attention, backends=["cpu"], examples=60, threads=threads)
    assert not report.refused["cpu"], report


def drawn(name, *shape, dtype="f32", seed=0, spread=1.0):
    numbers = spread * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return graphrt.weight(name, dtypes.from_f32(numbers, dtypes.get(dtype)))


def operands(shape, cache="f32", weights="f32", *, sequences=1):
    """Sources over random values; a tenth of the cells is empty, and holds NaN where the dtype can."""
    tokens, heads, cells, nope, rope, rank, value = shape
    draw = np.random.default_rng(0)
    cell_pos = draw.permutation(cells).astype(np.int32)
    cell_pos[draw.random(cells) < 0.1] = -1
    latent = draw.standard_normal((cells, 1, rank + rope)).astype(np.float32)
    if not dtypes.get(cache).is_quantized:
        latent[cell_pos < 0] = np.nan
    both = drawn("kv_b", heads, nope + value, rank, dtype=weights, spread=rank**-0.5)
    return [
        drawn("q", tokens, heads, nope + rope, seed=1),
        graphrt.weight("latent", dtypes.from_f32(latent, dtypes.get(cache))),
        both[:, :nope],
        both[:, nope:],
        graphrt.constant("q_pos", (cells // 2 + np.arange(tokens)).astype(np.int32)),
        graphrt.constant("q_seq", draw.integers(0, sequences, tokens).astype(np.int32)),
        graphrt.constant("cell_pos", cell_pos),
        graphrt.constant("cell_seq", draw.integers(1, 2**sequences, cells)),
    ]


def transposed(sources, dtype):
    """The same sources, but for keys that are stored the other way."""
    q, latent, keys, *rest = sources
    heads, nope, rank = keys.shape
    return [q, latent, drawn("k_b", heads, rank, nope, dtype=dtype, seed=2, spread=rank**-0.5), *rest]


def run(node, backend="cpu", threads=1):
    return graphrt.Scheduler([backend], threads=threads).plan(graphrt.Graph([node])).run()[0]


def assert_agrees(node, tolerance, threads=1):
    want = graphrt.Scheduler(["reference"]).plan(graphrt.Graph([node])).run()[0]
    assert normalised_error(run(node, threads=threads), want) < tolerance


SHAPES = {
    "one token": (1, 3, 333, 40, 8, 72, 24),
    "odd widths": (33, 2, 130, 33, 6, 65, 35),
    "more tokens than a panel": (100, 2, 300, 64, 32, 96, 64),
    "no rotated part": (5, 1, 257, 32, 0, 64, 32),
    "one cell": (3, 2, 1, 16, 2, 32, 16),
}


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_f32_is_exact(shape, threads):
    assert_agrees(ops.mla_attention(*operands(shape, sequences=3), scale=0.1), 1e-11, threads)


@pytest.mark.parametrize(
    ("cache", "weights", "tolerance"),
    [
        ("f16", "f16", 1e-11),
        ("f32", "q8_0", 1e-11),
        ("f16", "q8_0", 1e-4),
        ("bf16", "bf16", 1e-4),
        ("q8_0", "f32", 1e-4),
        ("q4_0", "q4_0", 1e-4),
    ],
)
def test_precision_follows_the_operands(cache, weights, tolerance):
    """All operands of more than bfloat16's precision: f32 products; else bfloat16, and int8 by quantized weights."""
    node = ops.mla_attention(*operands((40, 2, 300, 64, 32, 96, 64), cache, weights), scale=0.1)
    assert_agrees(node, tolerance)


@pytest.mark.parametrize(("cache", "weights"), [("f16", "q8_0"), ("q8_0", "q4_0")])
def test_quantized_keys_may_be_transposed(cache, weights):
    sources = transposed(operands((40, 2, 300, 64, 32, 96, 64), cache, weights), weights)
    assert_agrees(ops.mla_attention(*sources, scale=0.1, keys_transposed=True), 1e-4)


@pytest.mark.parametrize("level", host.levels())
def test_quantized_weights_expand_latents_in_int8(level):
    """An odd number of cells. Only latents are rounded: q8_0 weights keep their codes, rotated parts are float32."""
    with host.use_level(level):
        if not has_byte_products():
            pytest.skip("this level has no products of bytes, and expands in float32")
        sources = operands((40, 2, 301, 64, 32, 96, 64), "f16", "q8_0")
        node = ops.mla_attention(*sources, scale=0.1)
        rows = sources[1].data.astype(np.float32)
        blocks = rows[..., :96].reshape(-1, 3, 32)
        scales = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
        rows[..., :96] = (np.rint(blocks / scales) * scales).reshape(-1, 1, 96)
        rounded = graphrt.weight("latent", rows)
        want = run(ops.mla_attention(sources[0], rounded, *sources[2:], scale=0.1), backend="reference")
        assert normalised_error(run(node), want) < (2e-5 if bf16.has_pairs() else 1e-9)


def test_weights_that_are_not_finite_give_results_that_are_not():
    sources = operands((20, 1, 64, 32, 0, 64, 32), "f16", "q8_0")
    sources[3].root.data.view(np.uint8).reshape(64, 2, 34)[40, 1, :2] = 0, 0x7C  # a scale of infinity
    got = run(ops.mla_attention(*sources, scale=0.1))
    assert np.array_equal(np.isfinite(got[0, 0]), np.arange(32) != 40 - 32)


@pytest.mark.parametrize("threads", [1, 5])
@pytest.mark.parametrize("mode", ["normal", "neox"])
def test_rotated_cells(mode, threads):
    sources = operands((40, 2, 300, 64, 32, 96, 64))
    turns = graphrt.constant("cell_rotation", np.arange(-150, 150, dtype=np.int32))
    rotation = Rotation(mode=mode, first=96)
    assert_agrees(ops.mla_attention(*sources, turns, scale=0.1, rope=rotation), 1e-10, threads)


@pytest.mark.parametrize("threads", [1, 2])
def test_against_the_other_forms_in_f32(threads):
    """Naive attention to keys and values in memory, and attention to the latents by queries in their space."""
    heads, cells, nope, rope, rank, value = 3, 400, 64, 32, 96, 64
    q, latent, keys, values, *positions = operands((50, heads, cells, nope, rope, rank, value), sequences=2)
    params = {"scale": 0.1}
    got = run(ops.mla_attention(q, latent, keys, values, *positions, **params), threads=threads)

    rows = graphrt.weight("rows", np.nan_to_num(latent.data))
    k_nope, v = (ops.mul_mat(w, rows[:, 0, :rank]).permute(1, 0, 2) for w in (keys, values))  # [N, H, ·]
    k_pe = ops.repeat(rows[..., rank:], shape=(cells, heads, rope))
    naive = ops.attention(q, ops.concat(k_nope, k_pe, axis=-1), ops.cont(v), *positions, **params)
    np.testing.assert_allclose(got, run(naive, threads=threads), rtol=1e-5, atol=1e-5)

    in_latents = ops.mul_mat_transposed(keys, q[..., :nope].permute(1, 0, 2)).permute(1, 0, 2)  # [T, H, r]
    absorbed = ops.concat(in_latents, q[..., nope:], axis=-1)
    mixed = ops.attention(absorbed, latent, latent[..., :rank], *positions, **params)  # [T, H, r]
    y = ops.cont(ops.mul_mat(values, mixed.permute(1, 0, 2)).permute(1, 0, 2))  # [T, H, dv]
    np.testing.assert_allclose(got, run(y, threads=threads), rtol=1e-5, atol=1e-5)


def test_workspace_does_not_grow_with_the_context():
    """V2-Lite's heads: two threads' memory, for a few cells and for many."""
    sizes = set()
    for cells in (300, 3000):
        node = ops.mla_attention(*operands((512, 16, cells, 128, 64, 512, 128), "f16", "q8_0"), scale=0.1)
        sizes.add(Layout(node).workspace(2))
    assert len(sizes) == 1
    assert sizes.pop() < 4 << 20


@pytest.mark.parametrize("level", host.levels())
def test_every_simd_level_agrees(level):
    with host.use_level(level):
        for cache, weights, tolerance in (("f32", "f32", 1e-11), ("q8_0", "f32", 1e-4), ("q8_0", "q8_0", 1e-4)):
            node = ops.mla_attention(*operands((40, 2, 200, 33, 32, 64, 35), cache, weights), scale=0.1)
            assert_agrees(node, tolerance)
