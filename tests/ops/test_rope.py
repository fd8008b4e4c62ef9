import numpy as np
import pytest

from graphrt import ops
from graphrt.ops.rope import frequencies
from tests.ops.evaluate import close, drawn, leaf, refuses, run, values

POSITIONS = [0, 1, 7, 3000]


def turned(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Pairs (2i, 2i+1) of x [T, H, D] turned by angles [T, D/2], as complex numbers."""
    return ((x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)[:, None]).view(np.float64)


def test_by_hand():
    got = run(ops.rope(leaf([[[1.0, 0.0, 0.0, 1.0]]]), leaf([2], "i32"), base=100.0))
    close(got, [[[np.cos(2), np.sin(2), -np.sin(0.2), np.cos(0.2)]]])


def test_normal_pairs_turn_as_complex_numbers():
    x = drawn(4, 3, 8)
    angles = np.outer(POSITIONS, 1e4 ** (-np.arange(4) / 4))
    close(run(ops.rope(x, leaf(POSITIONS, "i32"))), turned(values(x), angles), 1e-5)


def test_neox_is_normal_with_halves_for_pairs():
    x, positions = drawn(4, 3, 8), leaf(POSITIONS, "i32")
    interleave = [0, 4, 1, 5, 2, 6, 3, 7]
    paired = leaf(values(x)[..., interleave])
    close(run(ops.rope(x, positions, mode="neox"))[..., interleave], run(ops.rope(paired, positions)))


@pytest.mark.parametrize("mode", ["normal", "neox"])
def test_only_the_first_dims_turn(mode):
    x, positions = drawn(4, 3, 10), leaf(POSITIONS, "i32")
    got = run(ops.rope(x, positions, mode=mode, dims=6))
    np.testing.assert_array_equal(got[..., 6:], values(x)[..., 6:])
    close(got[..., :6], run(ops.rope(x[..., :6], positions, mode=mode)))


@pytest.mark.parametrize("mode", ["normal", "neox"])
@pytest.mark.parametrize("dims", [0, 4])
def test_elements_turn_from_the_first_on(mode, dims):
    x, positions = drawn(4, 3, 10), leaf(POSITIONS, "i32")
    got, end = run(ops.rope(x, positions, mode=mode, first=2, dims=dims)), 2 + (dims or 8)
    np.testing.assert_array_equal(got[..., :2], values(x)[..., :2])
    np.testing.assert_array_equal(got[..., end:], values(x)[..., end:])
    close(got[..., 2:end], run(ops.rope(x[..., 2:end], positions, mode=mode)))


def test_scores_depend_on_the_distance_alone():
    q, k = drawn(1, 1, 16), drawn(1, 1, 16, seed=1)
    scores = [
        (run(ops.rope(q, leaf([at], "i32"))) * run(ops.rope(k, leaf([at - 5], "i32")))).sum() for at in (5, 105, 90_005)
    ]
    close(np.array(scores), [scores[0]] * 3, 1e-5)


def test_far_positions_are_exact():
    x = leaf([[[1.0, 0.0]]])
    close(run(ops.rope(x, leaf([1_000_003], "i32"))), [[[np.cos(1_000_003.0), np.sin(1_000_003.0)]]])


def test_linear_scaling_factors_and_magnitude():
    x, positions = drawn(4, 2, 4), leaf(POSITIONS, "i32")
    speed = 0.25 * 1e4 ** (-np.arange(2) / 2) / [1.0, 8.0]
    node = ops.rope(x, positions, leaf([1.0, 8.0]), freq_scale=0.25, magnitude=1.5)
    close(run(node), 1.5 * turned(values(x), np.outer(POSITIONS, speed)), 1e-5)


YARN = {"dims": 64, "base": 1e4, "freq_scale": 1 / 40, "ext_factor": 1.0, "original_context": 4096}


def test_yarn_ramp_of_deepseek_v2():
    """Pairs up to 10 keep their speed, those from 23 on are slowed 40 times, between them the ramp is linear."""
    theta = 1e4 ** (-np.arange(32) / 32)
    kept = (frequencies(**YARN) / theta - 1 / 40) / (1 - 1 / 40)
    np.testing.assert_allclose(kept[:11], 1, atol=1e-12)
    np.testing.assert_allclose(kept[23:], 0, atol=1e-12)
    np.testing.assert_allclose(np.diff(kept[10:24]), -1 / 13, atol=1e-12)


def test_yarn_without_ramp_is_linear_scaling_and_ext_factor_scales_the_ramp():
    linear, full = frequencies(**{**YARN, "ext_factor": 0.0}), frequencies(**YARN)
    np.testing.assert_allclose(linear, 1e4 ** (-np.arange(32) / 32) / 40)
    np.testing.assert_allclose(frequencies(**{**YARN, "ext_factor": 0.5}), (linear + full) / 2)


def test_yarn_in_the_op():
    x = drawn(4, 2, 64)
    angles = np.outer(POSITIONS, frequencies(**YARN))
    close(run(ops.rope(x, leaf(POSITIONS, "i32"), **YARN)), turned(values(x), angles), 1e-5)


def test_leading_axes_share_positions():
    x, positions = drawn(2, 4, 3, 8), leaf(POSITIONS, "i32")
    close(run(ops.rope(x, positions))[1], run(ops.rope(x[1], positions)))


def test_refusals():
    x, positions = drawn(4, 2, 8), leaf(POSITIONS, "i32")
    refuses(r"\[rope\] x must be \[..., T, H, D\], got f32 \[2, 8\]", lambda: ops.rope(x[0], positions))
    refuses(r"\[rope\] positions i32 \[4\] must be \[T\], with T = 3", lambda: ops.rope(x[:3], positions))
    refuses(r"\[rope\] positions must be one of i32, got f32", lambda: ops.rope(x, drawn(4)))
    refuses(r"\[rope\] dims 3 must be even and at most the last axis", lambda: ops.rope(x, positions, dims=3))
    refuses(r"\[rope\] dims 10 must be even and at most", lambda: ops.rope(x, positions, dims=10))
    refuses(r"\[rope\] dims 8 must be even .* from element 2 on", lambda: ops.rope(x, positions, first=2, dims=8))
    refuses(r"\[rope\] dims 5 must be even", lambda: ops.rope(x, positions, first=3))
    refuses(r"\[rope\] first must not be negative, got -1", lambda: ops.rope(x, positions, first=-1))
    refuses(r"\[rope\] freq_factors f32 \[4\] must be \[2\]", lambda: ops.rope(x, positions, drawn(4), dims=4))
    refuses(r'\[rope\] mode must be "normal" or "neox", got \'gptj\'', lambda: ops.rope(x, positions, mode="gptj"))
    refuses(r"\[rope\] YaRN .* needs original_context > 0", lambda: ops.rope(x, positions, ext_factor=1.0))
    refuses(r"\[rope\] base and freq_scale must be positive", lambda: ops.rope(x, positions, freq_scale=0.0))
