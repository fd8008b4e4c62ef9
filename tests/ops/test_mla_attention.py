"""T tokens, H heads, N cells; r width of a latent, dn and dr of a key without and with rotation, dv of a value."""

import numpy as np
import pytest

from graphrt import dtypes, ops
from graphrt.ops.rope import Rotation
from tests.ops.evaluate import INF, close, drawn, leaf, refuses, run, values

H, R, DN, DR, DV = 4, 10, 6, 4, 5
CELL_POS = [0, 1, -1, 2, 5, 3, 0, 4]  # the third cell is empty
CELL_SEQ = [0b11, 0b01, 0b11, 0b01, 0b10, 0b01, 0b10, 0b11]
POSITIONS = [leaf([3, 4, 5], "i32"), leaf([0, 0, 1], "i32"), leaf(CELL_POS, "i32"), leaf(CELL_SEQ, "i64")]

Q, LATENT = drawn(3, H, DN + DR), drawn(8, 1, R + DR, seed=1)
KEYS, VALUES = drawn(H, DN, R, seed=2), drawn(H, DV, R, seed=3)


def attend(q=Q, latent=LATENT, keys=KEYS, values=VALUES, **params):
    params.setdefault("scale", 0.2)
    return ops.mla_attention(q, latent, keys, values, *POSITIONS, **params)


def expanded(latent=LATENT):
    """Keys [N, H, dn+dr] and values [N, H, dv] in memory."""
    rows, wk, wv = values(latent)[:, 0], values(KEYS), values(VALUES)
    k_nope, v = (np.einsum("nr,hdr->nhd", rows[:, :R], w) for w in (wk, wv))
    k_pe = np.repeat(rows[:, None, R:], H, axis=1)
    return leaf(np.concatenate([k_nope, k_pe], axis=2)), leaf(v)


def test_against_attention_to_expanded_keys_and_values():
    close(run(attend()), run(ops.attention(Q, *expanded(), *POSITIONS, scale=0.2)), 1e-5)


def test_against_the_absorbed_form():
    q_nope, q_pe = values(Q)[..., :DN], values(Q)[..., DN:]
    absorbed = np.concatenate([np.einsum("thd,hdr->thr", q_nope, values(KEYS)), q_pe], axis=2)  # [T, H, r+dr]
    mixed = ops.attention(leaf(absorbed), LATENT, LATENT[..., :R], *POSITIONS, scale=0.2)  # [T, H, r]
    close(run(attend()), np.einsum("thr,hdr->thd", run(mixed).astype(np.float64), values(VALUES)), 1e-5)


def test_keys_may_be_transposed():
    transposed = leaf(values(KEYS).swapaxes(1, 2).copy())
    close(run(attend(keys=transposed, keys_transposed=True)), run(attend()))


@pytest.mark.parametrize("mode", ["normal", "neox"])
def test_rotated_parts_turn_by_the_rotation_of_their_cell(mode):
    rotation, turns = Rotation(mode=mode, first=R, magnitude=1.5), leaf([0, 1, 2, -3, 1000, 5, 5, 5], "i32")
    factors = leaf([1.0, 4.0])
    turned = ops.rope(LATENT, turns, factors, mode=mode, first=R, magnitude=1.5)
    got = ops.mla_attention(Q, LATENT, KEYS, VALUES, *POSITIONS, turns, factors, scale=0.2, rope=rotation)
    close(run(got), run(attend(latent=leaf(run(turned)))), 1e-5)


def test_what_empty_cells_hold_does_not_matter():
    latent = drawn(8, 1, R + DR, seed=1)
    clean = run(attend(latent=latent))
    latent.data[2, 0, :R], latent.data[2, 0, R:] = float("nan"), INF
    np.testing.assert_array_equal(run(attend(latent=latent)), clean)


def test_a_query_that_sees_nothing_gives_zeros():
    one = [leaf([number], "i32") for number in (3, 0, 7)]
    got = run(ops.mla_attention(Q[:1], LATENT[:1], KEYS, VALUES, *one, leaf([1], "i64"), scale=1.0))
    np.testing.assert_array_equal(got, np.zeros((1, H, DV)))


def test_cost_expands_each_cell_once():
    cost = ops.mla_attention.cost_of(attend())
    assert cost.flops == 2 * 8 * (H * R * (DN + DV) + 3 * H * (DN + DR + DV))
    assert cost.nbytes == sum(x.nbytes for x in (Q, LATENT, KEYS, VALUES)) + 4 * 3 * H * DV
    assert cost.batch == 3


def test_refusals():
    refuses(r"\[mla_attention\] needs q \[T, H, dn\+dr\]", lambda: attend(latent=LATENT[:, 0]))
    refuses(r"\[mla_attention\] needs q .* latent \[N, 1, r\+dr\]", lambda: attend(latent=drawn(8, 2, R + DR)))
    refuses(r"keys f32 \[4, 6, 10\] must be \[H, r, dn\], with H = 4", lambda: attend(keys_transposed=True))
    refuses(r"keys f32 \[3, 6, 10\] must be \[H, dn, r\]", lambda: attend(keys=KEYS[:3]))
    refuses(r"q f32 \[3, 4, 9\] has 9 - 6 = 3 rotated .* has 14 - 10 = 4", lambda: attend(q=Q[..., :9]))
    refuses(r"\[mla_attention\] q_pos i32 \[3\] .* must be \[T\], with T = 2", lambda: attend(q=Q[:2]))
    refuses(r"\[mla_attention\] cell_pos i32 \[8\] .* N = 7 of latent", lambda: attend(latent=LATENT[:7]))
    refuses(r"\[mla_attention\] latent must have dense rows", lambda: attend(latent=drawn(8, 1, 28)[..., ::2]))
    refuses(r"\[mla_attention\] cell_rotation \(absent\), rope \(given\)", lambda: attend(rope=Rotation(first=R)))
    turns = leaf([0] * 8, "i32")
    refuses(
        r"\[mla_attention\] rope begins at element 8 of latent .* pass first=10",
        lambda: ops.mla_attention(Q, LATENT, KEYS, VALUES, *POSITIONS, turns, scale=1.0, rope=Rotation(first=8)),
    )


def test_dtype_of_the_result_is_f32():
    assert attend(q=drawn(3, H, DN + DR, dtype="f16"), latent=drawn(8, 1, R + DR, dtype="bf16")).dtype is dtypes.f32
