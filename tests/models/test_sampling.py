"""Sampling: each filter's meaning, their order, and that draws follow the probabilities."""

import numpy as np
import pytest

from graphrt.errors import SettingsError
from graphrt.models.sampling import Sampler, SamplingOptions, candidates, penalise

EVERYTHING = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def log_probabilities(*shares: float) -> np.ndarray:
    return np.log(np.array(shares, np.float32))


def kept(logits: np.ndarray, **options: float) -> list[int]:
    return candidates(logits, SamplingOptions(**{**EVERYTHING, **options}))[0].tolist()


def test_temperature_zero_takes_the_most_likely_and_the_first_of_equals():
    greedy = Sampler(SamplingOptions(temperature=0))
    assert greedy.sample(np.array([0, 3, 1, 3], np.float32)) == 1


def test_top_k_keeps_the_likeliest_in_order():
    logits = np.array([1, 5, 3, 4, 2], np.float32)
    assert kept(logits, top_k=3) == [1, 3, 2]
    assert kept(logits, top_k=0) == [1, 3, 2, 4, 0]
    assert kept(logits, top_k=99) == [1, 3, 2, 4, 0]
    assert kept(np.array([2, 7, 7, 7], np.float32), top_k=2) == [1, 2]


def test_top_p_keeps_the_token_that_reaches_the_sum():
    logits = log_probabilities(0.5, 0.3, 0.15, 0.05)
    assert kept(logits, top_p=0.4) == [0]
    assert kept(logits, top_p=0.6) == [0, 1]
    assert kept(logits, top_p=0.9) == [0, 1, 2]
    assert kept(logits, top_p=1.0) == [0, 1, 2, 3]


def test_min_p_is_a_share_of_the_likeliest():
    logits = log_probabilities(0.5, 0.3, 0.15, 0.05)
    assert kept(logits, min_p=0.2) == [0, 1, 2]
    assert kept(logits, min_p=0.5) == [0, 1]
    assert kept(logits, min_p=1.0) == [0]


def test_top_p_sees_what_top_k_left():
    logits = log_probabilities(0.4, 0.3, 0.2, 0.1)
    # Of the best two, the first has 4/7 of the probability.
    assert kept(logits, top_k=2, top_p=0.5) == [0]
    assert kept(logits, top_k=2, top_p=0.6) == [0, 1]


def test_temperature_comes_last():
    logits = log_probabilities(0.6, 0.3, 0.1)
    # Divided by 10 first, the third token would be within half of the first.
    draws = {
        Sampler(SamplingOptions(temperature=10, min_p=0.4, top_k=0, top_p=1, seed=s)).sample(logits) for s in range(60)
    }
    assert draws == {0, 1}


def test_the_penalty_makes_each_seen_token_less_likely_once():
    logits = np.array([2, -2, 1], np.float32)
    np.testing.assert_allclose(penalise(logits, np.array([0, 1]), 2.0), [1, -4, 1])
    np.testing.assert_array_equal(logits, [2, -2, 1])
    sampler = Sampler(SamplingOptions(temperature=0, repeat_penalty=3.0), recent=[0, 0, 0])
    assert sampler.sample(logits) == 2
    assert sampler.sample(logits) == 0


def test_the_penalty_forgets_what_is_long_past():
    logits = np.array([2, 1], np.float32)
    assert Sampler(SamplingOptions(temperature=0, repeat_penalty=3.0, repeat_last=2), [0, 1, 1]).sample(logits) == 0
    assert Sampler(SamplingOptions(temperature=0, repeat_penalty=3.0, repeat_last=0), [0]).sample(logits) == 0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_probabilities(temperature):
    shares = np.array([0.5, 0.3, 0.15, 0.05])
    sampler = Sampler(SamplingOptions(**{**EVERYTHING, "temperature": temperature}, seed=3))
    counts = np.bincount([sampler.sample(log_probabilities(*shares)) for _ in range(20_000)], minlength=4)
    expected = shares ** (1 / temperature)
    np.testing.assert_allclose(counts / 20_000, expected / expected.sum(), atol=0.015)


def test_a_seed_repeats_the_draws():
    logits = np.random.default_rng(0).normal(size=100).astype(np.float32)

    def draws(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingOptions(seed=seed))
        return [sampler.sample(logits) for _ in range(30)]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)
    assert draws(None) != draws(None)


def test_tokens_of_probability_zero_are_never_drawn():
    logits = np.array([-np.inf, 0.0, -np.inf], np.float32)
    sampler = Sampler(SamplingOptions(**EVERYTHING, seed=0))
    assert {sampler.sample(logits) for _ in range(50)} == {1}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0),
        ("top_p", 1.5),
        ("min_p", -0.1),
        ("repeat_penalty", 0),
    ],
)
def test_values_out_of_range(option, value):
    with pytest.raises(SettingsError, match=rf"\[sampling\] {option} is {value}; it must be"):
        SamplingOptions(**{option: value})
