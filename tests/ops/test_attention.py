import math

import numpy as np
import pytest

from graphrt import dtypes, ops
from graphrt.ops.rope import Rotation
from tests.ops.evaluate import INF, close, drawn, leaf, refuses, run, values

CELL_POS = [0, 1, -1, 2, 5, 3, 0, 4]  # the third cell is empty
CELL_SEQ = [0b11, 0b01, 0b11, 0b01, 0b10, 0b01, 0b10, 0b11]
Q_POS, Q_SEQ = [3, 4, 5], [0, 0, 1]


def attend(q, k, v, sinks=None, turns=None, factors=None, **params):
    positions = [leaf(numbers, "i32") for numbers in (Q_POS, Q_SEQ, CELL_POS)]
    params.setdefault("scale", 0.5)
    turns = None if turns is None else leaf(turns, "i32")
    return ops.attention(q, k, v, *positions, leaf(CELL_SEQ, "i64"), sinks, turns, factors, **params)


def expected(q, k, v, sinks=None, scale=0.5, window=0, softcap=0.0):
    """One query, head and cell at a time, in plain Python."""
    tokens, heads, _ = q.shape
    group = heads // k.shape[1]
    y = np.zeros((tokens, heads, v.shape[2]))
    for t in range(tokens):
        for h in range(heads):
            powers = {}
            for n, (position, sequences) in enumerate(zip(CELL_POS, CELL_SEQ, strict=True)):
                near = not window or Q_POS[t] - position < window
                if 0 <= position <= Q_POS[t] and sequences >> Q_SEQ[t] & 1 and near:
                    logit = scale * float(q[t, h] @ k[n, h // group])
                    powers[n] = math.exp(softcap * math.tanh(logit / softcap) if softcap else logit)
            total = sum(powers.values()) + (math.exp(sinks[h]) if sinks is not None else 0.0)
            for n, power in powers.items():
                y[t, h] += power / total * v[n, h // group]
    return y


@pytest.mark.parametrize("params", [{}, {"window": 2}, {"softcap": 1.5}, {"scale": 2.0, "window": 4}], ids=str)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("with_sinks", [True, False])
def test_against_plain_python(params, kv_heads, with_sinks):
    q, k, v = drawn(3, 4, 6), drawn(8, kv_heads, 6, seed=1), drawn(8, kv_heads, 5, seed=2)
    sinks = drawn(4, seed=3) if with_sinks else None
    truth = expected(values(q), values(k), values(v), values(sinks) if sinks else None, **params)
    close(run(attend(q, k, v, sinks, **params)), truth, 1e-5)


def test_against_the_graph_of_plain_ops():
    """q·kᵀ, mask, softmax, ·v as ggml writes them without flash attention."""
    q, k, v = drawn(3, 4, 6), drawn(8, 4, 6, seed=1), drawn(8, 4, 6, seed=2)
    position, sequence = np.array(CELL_POS), np.array(CELL_SEQ)
    seen = (position >= 0) & (position <= np.array(Q_POS)[:, None]) & (sequence >> np.array(Q_SEQ)[:, None] & 1 == 1)
    logits = ops.mul_mat(k.permute(1, 0, 2), q.permute(1, 0, 2))  # [H, T, N]
    weights = ops.soft_max(logits, leaf(np.where(seen, 0.0, -INF)), scale=0.5)
    y = ops.mul_mat_transposed(v.permute(1, 0, 2), weights)  # [H, T, Dv]
    close(run(attend(q, k, v)), run(ops.cont(y.permute(1, 0, 2))), 1e-5)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0", "q4_0"])
def test_values_may_be_a_view_of_the_keys(dtype):
    """The latent cache of multi-head latent attention: v is the beginning of k's rows."""
    q, k = drawn(3, 4, 96), drawn(8, 1, 96, seed=1, dtype=dtype)
    close(run(attend(q, k, k[..., :64])), expected(values(q), values(k), values(k)[..., :64]), 1e-4)


TURNS = [0, 1, 999, 2, 5, -3, 100_000, 4]
ROTATIONS = [
    Rotation(),
    Rotation(mode="neox", first=2, dims=4, magnitude=1.5),
    Rotation(first=4, base=500.0, freq_scale=0.25),
    Rotation(base=1e4, freq_scale=1 / 40, ext_factor=1.0, original_context=4096),
]


@pytest.mark.parametrize("rotation", ROTATIONS, ids=str)
@pytest.mark.parametrize("with_factors", [True, False])
def test_keys_turn_as_by_rope(rotation, with_factors):
    q, k, v = drawn(3, 4, 8), drawn(8, 2, 8, seed=1), drawn(8, 2, 5, seed=2)
    factors = leaf(1.0 + np.arange(rotation.width(8) // 2)) if with_factors else None
    roped = leaf(run(ops.rope(k, leaf(TURNS, "i32"), factors, **vars(rotation))))
    close(run(attend(q, k, v, None, TURNS, factors, rope=rotation)), run(attend(q, roped, v)))


def test_scores_of_unroped_keys_depend_on_the_distance_alone():
    """Queries are roped at their positions; the keys turn by theirs, here and 90,000 positions on."""
    q, k = drawn(3, 4, 8), drawn(8, 1, 8, seed=1)
    cell_pos = np.maximum(CELL_POS, 0)

    def at(start):
        roped = leaf(run(ops.rope(q, leaf(start + np.array(Q_POS), "i32"))))
        return run(attend(roped, k, k, turns=start + cell_pos, rope=Rotation()))

    close(at(90_000), at(0), 1e-5)


def test_values_in_the_memory_of_keys_do_not_turn():
    q, k = drawn(3, 4, 8), drawn(8, 1, 8, seed=1)
    for first in (0, 4):
        apart = run(attend(q, k, leaf(values(k)[..., :6]), turns=TURNS, rope=Rotation(first=first)))
        close(run(attend(q, k, k[..., :6], turns=TURNS, rope=Rotation(first=first))), apart)


def test_what_empty_cells_hold_does_not_matter():
    q, k, v = drawn(3, 4, 6), drawn(8, 2, 6, seed=1), drawn(8, 2, 5, seed=2)
    clean = run(attend(q, k, v)), run(attend(q, k, v, turns=TURNS, rope=Rotation()))
    k.data[2], v.data[2] = float("nan"), INF
    np.testing.assert_array_equal(run(attend(q, k, v)), clean[0])
    turns = [*TURNS[:2], -1, *TURNS[3:]]
    np.testing.assert_array_equal(run(attend(q, k, v, turns=turns, rope=Rotation())), clean[1])


def test_a_query_that_sees_nothing_gives_zeros():
    q, k = drawn(1, 2, 4), drawn(1, 1, 4, seed=1)
    one = [leaf([number], "i32") for number in (3, 0, 7)]
    np.testing.assert_array_equal(run(ops.attention(q, k, k, *one, leaf([1], "i64"), scale=1.0)), np.zeros((1, 2, 4)))


def test_the_highest_sequence_uses_the_sign_bit():
    q, k = drawn(2, 1, 4), drawn(1, 1, 4, seed=1)
    queries = [leaf([3, 3], "i32"), leaf([63, 62], "i32"), leaf([0], "i32")]
    got = run(ops.attention(q, k, k, *queries, leaf([-(2**63)], "i64"), scale=1.0))
    close(got, [values(k)[0], np.zeros((1, 4))])


def test_no_cells_and_no_queries():
    none = leaf([], "i32")
    ids, seq = [leaf([1], "i32"), leaf([0], "i32")], leaf([], "i64")
    assert not run(ops.attention(drawn(1, 2, 4), drawn(0, 1, 4), drawn(0, 1, 3), *ids, none, seq, scale=1.0)).any()
    k = drawn(1, 1, 4)
    assert run(ops.attention(drawn(0, 2, 4), k, k, none, none, ids[1], leaf([1], "i64"), scale=1.0)).shape == (0, 2, 4)


def test_cost_reads_a_shared_cache_once():
    q, k = drawn(3, 4, 8), drawn(8, 1, 8, dtype="f16")
    apart = ops.attention.cost_of(attend(q, k, drawn(8, 1, 8, dtype="f16")))
    shared = ops.attention.cost_of(attend(q, k, k[..., :8]))
    assert apart.flops == shared.flops == 2 * 3 * 4 * 8 * (8 + 8)
    assert apart.nbytes - shared.nbytes == k.nbytes
    assert apart.batch == 3
    turned = ops.attention.cost_of(attend(q, k, k[..., :8], turns=TURNS, rope=Rotation(dims=4)))
    assert turned.flops - shared.flops == 3 * 8 * 4


def test_refusals():
    q, k, v = drawn(3, 4, 6), drawn(8, 2, 6), drawn(8, 2, 5)
    refuses(r"\[attention\] needs q \[T, H, Dk\]", lambda: attend(q, k[:, 0], v[:, 0]))
    refuses(r"\[attention\] q f32 \[3, 4, 6\] and k f32 \[8, 2, 5\] must agree in Dk", lambda: attend(q, v, v))
    refuses(
        r"\[attention\] the 4 heads of q must be a multiple of the 3", lambda: attend(q, drawn(8, 3, 6), drawn(8, 3, 5))
    )
    refuses(r"\[attention\] q_pos i32 \[3\] and q_seq .* must be \[T\], with T = 2", lambda: attend(q[:2], k, v))
    refuses(r"\[attention\] cell_pos i32 \[8\] .* must be \[N\], N = 7 of k", lambda: attend(q, k[:7], v[:7]))
    refuses(r"\[attention\] sinks f32 \[2\] must be \[H\], with H = 4", lambda: attend(q, k, v, drawn(2)))
    refuses(r"\[attention\] window must not be negative, got -1", lambda: attend(q, k, v, window=-1))
    refuses(r"\[attention\] k must have dense rows", lambda: attend(q[..., :3], k[..., ::2], v))
    refuses(r"\[attention\] q must be one of f32, f16, bf16", lambda: attend(drawn(3, 4, 32, dtype="q8_0"), k, v))
    refuses(r"\[attention\] needs scale", lambda: ops.attention(q, k, v, *[leaf(Q_POS, "i32")] * 3, leaf([1], "i64")))


def test_refusals_of_rotations():
    q, k, rotation = drawn(3, 4, 6), drawn(8, 2, 6), Rotation()

    def attempt(turns=None, factors=None, **params):
        return lambda: attend(q, k, k, None, turns, factors, **params)

    refuses(
        r"\[attention\] cell_rotation \(absent\), rope \(given\) and freq_factors \(absent\)", attempt(rope=rotation)
    )
    refuses(r"\[attention\] cell_rotation \(given\), rope \(absent\)", attempt(TURNS))
    refuses(r"\[attention\] .* and freq_factors \(given\): give the first two together", attempt(factors=drawn(3)))
    refuses(r"\[attention\] cell_rotation i32 \[7\] must be \[N\], with N = 8", attempt(TURNS[:7], rope=rotation))
    refuses(r"\[attention\] freq_factors f32 \[2\] must be \[3\]", attempt(TURNS, drawn(2), rope=rotation))
    refuses(
        r"\[attention\] dims 4 must be even and at most the last axis of k f32 \[8, 2, 6\], from element 3 on",
        attempt(TURNS, rope=Rotation(first=3, dims=4)),
    )
    refuses(r'\[attention\] mode must be "normal" or "neox"', attempt(TURNS, rope=Rotation(mode="gptj")))


def test_dtype_of_the_result_is_f32():
    assert attend(drawn(3, 4, 6, dtype="f16"), drawn(8, 2, 6), drawn(8, 2, 5)).dtype is dtypes.f32
