"""Kernel of attention against its reference: drawn cases, and sizes that take each of its ways.

T tokens, H query heads, Hkv heads of keys and values, N cells, Dk and Dv widths of keys and values.
"""

import numpy as np
import pytest

import graphrt
from graphrt import dtypes, ops
from graphrt.backends.cpu import host
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
    graph = graphrt.Graph([node])
    (want,) = graphrt.Scheduler(["reference"]).plan(graph).run()
    (got,) = graphrt.Scheduler(["cpu"], threads=threads).plan(graph).run()
    assert normalised_error(got, want) < 1e-10


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 7, 1, 200, 64, 40), {"sinks": True}),
        ((1, 4, 2, 300, 33, 5), {"dtype": "f16", "softcap": 20.0}),
        ((3, 10, 2, 300, 64, 96), {"dtype": "q8_0", "sequences": 2}),
        ((1, 16, 1, 300, 96, 64), {"dtype": "q8_0", "shared": True}),
        ((1, 100, 1, 130, 96, 64), {"dtype": "bf16", "shared": True, "sinks": True}),
        ((90, 3, 1, 333, 33, 33), {"shared": True, "sequences": 3}),
        ((100, 4, 2, 333, 64, 96), {"dtype": "q4_0", "sequences": 2, "window": 40}),
    ],
    ids=[
        "few rows",
        "narrow heads",
        "tokens of few rows",
        "one latent",
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
