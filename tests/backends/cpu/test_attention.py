"""Kernel of attention against its reference: drawn cases, and sizes that take each of its ways.

T tokens, H query heads, Hkv heads of keys and values, N cells, Dk and Dv widths of keys and values.
"""

import numpy as np
import pytest

import graphrt
from graphrt import dtypes, ops
from graphrt.backends.cpu import host
from graphrt.backends.cpu.attention_layout import Layout
from graphrt.testing import check, normalised_error


@pytest.mark.parametrize("threads", [1, 3])
def test_kernel_agrees_with_the_reference(threads):
    report = check(ops.attention, backends=["cpu"], examples=60, threads=threads)
    assert not report.refused["cpu"], report


def attention(shape, dtype="f32", *, shared=False, sequences=1, sinks=False, **params):
    """A node over random values; a tenth of the cells is empty, and holds NaN where the dtype can."""
    tokens, heads, kv_heads, cells, key_width, value_width = shape
    draw = np.random.default_rng(0)
    cell_pos = draw.permutation(cells).astype(np.int32)
    cell_pos[draw.random(cells) < 0.1] = -1

    def cache(name, width):
        values = draw.standard_normal((cells, kv_heads, width)).astype(np.float32)
        if not dtypes.get(dtype).is_quantized:
            values[cell_pos < 0] = np.nan
        return graphrt.weight(name, dtypes.from_f32(values, dtypes.get(dtype)))

    k = cache("k", key_width)
    return ops.attention(
        graphrt.constant("q", draw.standard_normal((tokens, heads, key_width)).astype(np.float32)),
        k,
        k[..., :value_width] if shared else cache("v", value_width),
        graphrt.constant("q_pos", (cells // 2 + np.arange(tokens)).astype(np.int32)),
        graphrt.constant("q_seq", draw.integers(0, sequences, tokens).astype(np.int32)),
        graphrt.constant("cell_pos", cell_pos),
        graphrt.constant("cell_seq", draw.integers(1, 2**sequences, cells)),
        graphrt.constant("sinks", draw.standard_normal(heads).astype(np.float32)) if sinks else None,
        scale=key_width**-0.5,
        **params,
    )


def assert_agrees(node, threads=1):
    """To float32's precision; to that of int16, which is float16's, where products are theirs."""
    graph = graphrt.Graph([node])
    (want,) = graphrt.Scheduler(["reference"]).plan(graph).run()
    (got,) = graphrt.Scheduler(["cpu"], threads=threads).plan(graph).run()
    assert normalised_error(got, want) < (1e-7 if Layout(node).integers else 1e-10)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 7, 1, 200, 64, 40), {"sinks": True}),
        ((1, 4, 2, 300, 33, 5), {"dtype": "f16", "softcap": 20.0}),
        ((3, 10, 2, 300, 64, 96), {"dtype": "q8_0", "sequences": 2}),
        ((1, 16, 1, 300, 96, 64), {"dtype": "q8_0", "shared": True}),
        ((2, 16, 1, 300, 576, 512), {"dtype": "f16", "shared": True}),
        ((1, 100, 1, 130, 96, 64), {"dtype": "bf16", "shared": True, "sinks": True}),
        ((90, 3, 1, 333, 33, 33), {"shared": True, "sequences": 3}),
        ((100, 4, 2, 333, 64, 96), {"dtype": "q4_0", "sequences": 2, "window": 40}),
    ],
    ids=[
        "few rows",
        "narrow heads",
        "tokens of few rows",
        "one latent",
        "latents in parts",
        "more heads than a block",
        "sequences",
        "window",
    ],
)
def test_every_way_agrees(shape, options, threads):
    assert_agrees(attention(shape, **options), threads)


@pytest.mark.parametrize("level", host.levels())
def test_every_simd_level_agrees(level):
    with host.use_level(level):
        assert_agrees(attention((30, 4, 2, 70, 40, 24), "f16"))
        assert_agrees(attention((1, 4, 2, 70, 40, 24), "f16"))


def unmasked(q, k, v, dtype):
    """A node whose queries [T, H, Dk] see all cells: k [N, Dk] and v [N, Dv] in a cache of a dtype."""
    (tokens, _, width), cells = q.shape, len(k)
    return ops.attention(
        graphrt.constant("q", q),
        *(graphrt.weight(name, dtypes.from_f32(x[:, None], dtypes.get(dtype))) for name, x in (("k", k), ("v", v))),
        graphrt.constant("q_pos", np.full(tokens, cells, np.int32)),
        graphrt.constant("q_seq", np.zeros(tokens, np.int32)),
        graphrt.constant("cell_pos", np.arange(cells, dtype=np.int32)),
        graphrt.constant("cell_seq", np.ones(cells, np.int64)),
        scale=width**-0.5,
    )


def latents(q, k, width, dtype="f16"):
    """The same where the first `width` elements of keys are the values."""
    node = unmasked(q, k, k[:, :1], dtype)
    q, k, _, *others = (source for source in node.srcs if source is not None)
    return ops.attention(q, k, k[..., :width], *others, scale=q.shape[2] ** -0.5)


def normal(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("by_query", "by_key", "by_value", "dtype", "most"),
    [
        (1, 1, 1, "f16", 1e-7),
        (30, 1, 1e4, "f16", 1e-6),  # sharp powers
        (1e-22, 1e22, 1e12, "bf16", 1e-6),  # squares beyond float32's range
        (1e22, 1e-22, 1e-12, "bf16", 1e-6),
        (1, 0, 1, "f16", 1e-7),
    ],
)
def test_magnitudes(by_query, by_key, by_value, dtype, most):
    """Rows of integers have factors of their own."""
    node = unmasked(by_query * normal(20, 2, 64), by_key * normal(300, 64), by_value * normal(300, 96), dtype)
    want, got = (graphrt.Scheduler([name]).plan(graphrt.Graph([node])).run()[0] for name in ("reference", "cpu"))
    assert normalised_error(got / by_value, want / by_value) < most


@pytest.mark.parametrize("by_rotated", [1e-3, 1, 1e3])
def test_what_was_rotated_beside_latents_has_a_scale_of_its_own(by_rotated):
    """Queries make up for it, so that both count."""
    by_key = np.repeat(np.float32([1, by_rotated]), [512, 64])
    node = latents(normal(2, 16, 576) / by_key, by_key * normal(300, 576), 512)
    want, got = (graphrt.Scheduler([name]).plan(graphrt.Graph([node])).run()[0] for name in ("reference", "cpu"))
    assert normalised_error(got, want) < 1e-7


def test_faint_cells_count_beside_a_loud_one():
    """One cell takes half of all the power, 200,000 others the rest: each has less than an int16 of the first shows."""
    cells = 200_001
    k, v = np.zeros((cells, 32), np.float32), np.ones((cells, 32), np.float32)
    k[0], v[0] = 1, -1
    q = np.full((16, 1, 32), np.log(cells - 1) / 32**0.5, np.float32)
    (got,) = graphrt.Scheduler(["cpu"]).plan(graphrt.Graph([unmasked(q, k, v, "f16")])).run()
    np.testing.assert_allclose(got, 0, atol=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(("place", "shared"), [("q", False), ("k", False), ("v", False), ("q", True), ("k", True)])
def test_nothing_hides_what_is_not_finite(place, bad, shared):
    given = {"q": normal(20, 1, 64), "k": normal(70, 64), "v": normal(70, 64)}
    given[place][3, ..., 5] = bad
    node = latents(given["q"], given["k"], 32) if shared else unmasked(**given, dtype="f16")
    want, got = (graphrt.Scheduler([name]).plan(graphrt.Graph([node])).run()[0] for name in ("reference", "cpu"))
    assert not np.isfinite(got[~np.isfinite(want)]).any()
    assert np.isfinite(want).all() == np.isfinite(got).all()
