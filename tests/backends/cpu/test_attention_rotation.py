"""Keys that turn inside attention: every way of the kernel, against rope followed by attention without rotation.

T tokens, H query heads, Hkv heads of keys and values, N cells, Dk and Dv widths of keys and values.
"""

import numpy as np
import pytest

import graphrt
from graphrt import dtypes, ops
from graphrt.backends.cpu import host
from graphrt.backends.cpu.attention_layout import Layout
from graphrt.ops.rope import Rotation

CELLS = 230
CELL = np.arange(CELLS)
EMPTY = (CELL % 11 == 3) | (CELL > 200)

TURNS = {
    "none": 0 * CELL,
    "positions": CELL,
    "far positions": 1_000_003 + CELL,
    "one shift": 0 * CELL - 7,
    "shifts in runs": np.where(CELL < 70, 0, np.where(CELL < 150, -3, 5)),
    "two sequences": CELL // 2 + 500 * (CELL % 2),
    "any": np.random.default_rng(5).integers(-1000, 200_000, CELLS),
}

# T, H, Hkv, Dk, Dv, and the rotation; latents: values are the beginning of the keys.
SHAPES = {
    "few rows": (1, 4, 2, 64, 32, Rotation()),
    "few rows, neox": (1, 4, 2, 64, 32, Rotation(mode="neox")),
    "few rows of three tokens": (3, 8, 2, 64, 64, Rotation()),
    "few rows, partly": (1, 7, 1, 128, 64, Rotation(first=32, dims=32, magnitude=0.75)),
    "few rows, odd parts": (2, 2, 2, 50, 24, Rotation(first=3, dims=14)),
    "latents": (1, 16, 1, 96, 64, Rotation(first=64, base=1e6)),
    "latents, neox": (1, 16, 1, 96, 64, Rotation(mode="neox", first=64)),
    "latents of few heads": (1, 3, 1, 96, 64, Rotation(first=64)),
    "a prompt": (80, 4, 2, 64, 96, Rotation()),
    "a prompt, odd parts": (20, 4, 2, 45, 33, Rotation(mode="neox", dims=22, magnitude=1.25)),
}


def drawn(name, *shape, dtype="f32", seed=0):
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return graphrt.weight(name, dtypes.from_f32(values, dtypes.get(dtype)))


def sources(shape, dtype="f32"):
    """q [T, H, Dk], k [N, Hkv, Dk], v [N, Hkv, Dv], and the rotation's factors."""
    tokens, heads, kv_heads, key_width, value_width, rotation = SHAPES[shape]
    k = drawn("k", CELLS, kv_heads, key_width, dtype=dtype, seed=1)
    shared = shape.startswith("latents")
    v = k[..., :value_width] if shared else drawn("v", CELLS, kv_heads, value_width, dtype=dtype, seed=2)
    factors = 1 + np.random.default_rng(3).random(rotation.width(key_width) // 2, np.float32)
    return drawn("q", tokens, heads, key_width), k, v, graphrt.weight("factors", factors)


def attention(q, k, v, turns=None, factors=None, rotation=None):
    """Attention to cells some of which are empty; these turn by an amount of their own."""
    if turns is not None:
        turns = graphrt.constant("turns", np.where(EMPTY, 12345, turns).astype(np.int32))
    return ops.attention(
        q,
        k,
        v,
        graphrt.constant("q_pos", (CELLS - 10 + np.arange(q.shape[0])).astype(np.int32)),
        graphrt.constant("q_seq", np.zeros(q.shape[0], np.int32)),
        graphrt.constant("cell_pos", np.where(EMPTY, -1, CELL).astype(np.int32)),
        graphrt.constant("cell_seq", np.ones(CELLS, np.int64)),
        None,
        turns,
        factors,
        scale=q.shape[-1] ** -0.5,
        rope=rotation,
    )


def roped(k, turns, factors, rotation):
    """The keys in float32, turned by the rope op."""
    plain = graphrt.weight("plain", run(ops.cast(k, dtype="f32"), "reference"))
    return ops.rope(plain, graphrt.constant("turns", turns.astype(np.int32)), factors, **vars(rotation))


def run(node, backend="cpu", threads=1):
    return graphrt.Scheduler([backend], threads=threads).plan(graphrt.Graph([node])).run()[0]


def assert_equal(got, want, tolerance=2e-6):
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


def assert_turns(shape, turns, *, dtype="f32", threads=1):
    q, k, v, factors = sources(shape, dtype)
    rotation = SHAPES[shape][-1]
    values = graphrt.weight("values", run(ops.cast(v, dtype="f32"), "reference"))
    want = run(attention(q, roped(k, TURNS[turns], factors, rotation), values), "reference")
    node = attention(q, k, v, TURNS[turns], factors, rotation)
    assert_equal(run(node, threads=threads), want, 5e-4 if Layout(node).integers else 2e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("turns", TURNS)
def test_equals_rope_then_attention(shape, turns):
    assert_turns(shape, turns)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0", "q4_0"])
@pytest.mark.parametrize("shape", ["few rows", "latents", "a prompt"])
@pytest.mark.parametrize("turns", ["positions", "shifts in runs"])
def test_caches_of_every_kind(shape, dtype, turns):
    assert_turns(shape, turns, dtype=dtype)


@pytest.mark.parametrize("shape", ["few rows", "latents"])
@pytest.mark.parametrize("turns", ["positions", "shifts in runs", "any"])
def test_threads_that_share_the_cells(shape, turns):
    assert_turns(shape, turns, threads=3)


@pytest.mark.parametrize("level", host.levels()[1:])
@pytest.mark.parametrize("shape", ["few rows", "few rows, odd parts", "latents"])
def test_every_simd_level(level, shape):
    with host.use_level(level):
        assert_turns(shape, "positions")
        assert_turns(shape, "shifts in runs")


@pytest.mark.parametrize("shape", ["few rows", "latents"])
def test_a_shift_equals_keys_roped_at_the_new_positions(shape):
    q, k, v, factors = sources(shape)
    rotation, shift = SHAPES[shape][-1], np.where(CELL < 100, 0, -40)
    there, here = 100_000 + CELL, 100_000 + CELL + shift
    want = run(attention(q, graphrt.weight("roped", run(roped(k, here, factors, rotation))), v))
    moved = graphrt.weight("roped", run(roped(k, there, factors, rotation)))
    values = graphrt.weight("values", run(ops.cont(v)))
    assert_equal(run(attention(q, moved, values, shift, factors, rotation)), want)


@pytest.mark.parametrize("shape", ["few rows", "a prompt"])
def test_without_rotations_to_do_nothing_changes(shape):
    q, k, v, factors = sources(shape, "f16")
    plain, turned = run(attention(q, k, v)), run(attention(q, k, v, TURNS["none"], factors, SHAPES[shape][-1]))
    np.testing.assert_array_equal(turned, plain)
