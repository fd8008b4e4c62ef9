"""Keys that turn inside attention: every way of the kernel, against rope followed by attention without rotation.

T tokens, H query heads, Hkv heads of keys and values, N cells, Dk and Dv widths of keys and values.
"""

import numpy as np
import pytest

import graphrt
from graphrt import dtypes, ops
from graphrt.ops.rope import Rotation

CELLS = 230
CELL = np.arange(CELLS)
EMPTY = (CELL % 11 == 3) | (CELL > 200)

ROTATIONS = {
    "none": 0 * CELL,
    "positions": CELL,
    "far positions": 1_000_003 + CELL,
    "one shift": 0 * CELL - 7,
    "shifts in runs": np.where(CELL < 70, 0, np.where(CELL < 150, -3, 5)),
    "two sequences": CELL // 2 + 500 * (CELL % 2),
    "any": np.random.default_rng(5).integers(-1000, 200_000, CELLS),
}


def drawn(name, *shape, dtype="f32", seed=0):
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return graphrt.weight(name, dtypes.from_f32(values, dtypes.get(dtype)))


def attention(q, k, v, turns=None, factors=None, **params):
    """Attention of q [T, H, Dk] to k [N, Hkv, Dk], v [N, Hkv, Dv]; some cells are empty and turn by any amount."""
    tokens, width = q.shape[0], q.shape[-1]
    if turns is not None:
        turns = graphrt.constant("turns", np.where(EMPTY, 12345, turns).astype(np.int32))
    return ops.attention(
        q,
        k,
        v,
        graphrt.constant("q_pos", (CELLS - 10 + np.arange(tokens)).astype(np.int32)),
        graphrt.constant("q_seq", np.zeros(tokens, np.int32)),
        graphrt.constant("cell_pos", np.where(EMPTY, -1, CELL).astype(np.int32)),
        graphrt.constant("cell_seq", np.ones(CELLS, np.int64)),
        None,
        turns,
        factors,
        scale=width**-0.5,
        **params,
    )


def run(node, backend="cpu", threads=1):
    return graphrt.Scheduler([backend], threads=threads).plan(graphrt.Graph([node])).run()[0]


def apart(q, k, v, turns, factors, rotation):
    """Rope of the keys in float32, then attention: what one with the other must equal."""
    plain = graphrt.weight("plain", dtypes.to_f32(k.data))
    turned = ops.rope(plain, graphrt.constant("turns", turns.astype(np.int32)), factors, **vars(rotation))
    return attention(q, turned, graphrt.weight("values", dtypes.to_f32(v.data)))


def assert_equal(got, want, tolerance=2e-6):
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


SHAPES = {
    "few rows": (1, 4, 2, 64, 32, {}),
    "few rows, partly turned": (1, 4, 1, 96, 64, {"first": 32, "dims": 32}),
    "few rows, odd parts": (2, 2, 2, 50, 24, {"first": 3, "dims": 14}),
    "latents": (1, 16, 1, 96, 64, {"first": 64, "base": 1e6}),
    "latents of few heads": (1, 3, 1, 96, 64, {"first": 64}),
    "a prompt": (80, 4, 2, 64, 96, {}),
    "a prompt, odd parts": (20, 4, 2, 45, 33, {"dims": 22, "magnitude": 1.25}),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("turns", ROTATIONS)
@pytest.mark.parametrize("mode", ["normal", "neox"])
def test_equals_rope_then_attention(shape, turns, mode):
    tokens, heads, kv_heads, key_width, value_width, options = SHAPES[shape]
    rotation, turns = Rotation(mode=mode, **options), ROTATIONS[turns]
    q, k = drawn("q", tokens, heads, key_width), drawn("k", CELLS, kv_heads, key_width, seed=1)
    v = k[..., :value_width] if shape.startswith("latents") else drawn("v", CELLS, kv_heads, value_width, seed=2)
    factors = drawn("factors", rotation.width(key_width) // 2, seed=3)
    factors.data[...] = 1 + np.abs(factors.data)
    values = graphrt.weight("values", k.data[..., :value_width]) if v.data is None else v
    want = run(apart(q, k, values, turns, factors, rotation), "reference")
    assert_equal(run(attention(q, k, v, turns, factors, rope=rotation)), want)
