"""Routing rules against plain NumPy."""

import numpy as np
import pytest

import graphrt
from graphrt.errors import FormatError
from graphrt.models.routing import Routing

TOKENS = 50


def route(rule: Routing, logits: np.ndarray, bias: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    offset = None if bias is None else graphrt.constant("bias", bias)
    ids, weights = rule(graphrt.input("logits", logits.shape), offset, 0)
    return tuple(graphrt.Scheduler(["reference"]).plan(graphrt.Graph([ids, weights])).run(logits=logits))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def best(scores: np.ndarray, count: int) -> np.ndarray:
    return np.argsort(-scores, axis=-1, kind="stable")[..., :count]


def keep_groups(scores: np.ndarray, groups: int, used: int, leaders: int) -> np.ndarray:
    """-inf for every expert outside the `used` groups whose best `leaders` experts add up to most."""
    grouped = scores.reshape(len(scores), groups, -1)
    totals = np.sort(grouped, axis=-1)[..., -leaders:].sum(axis=-1)
    kept = np.zeros(totals.shape, bool)
    np.put_along_axis(kept, best(totals, used), True, axis=-1)
    return np.where(kept[..., None], grouped, -np.inf).reshape(scores.shape)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(7)


def draw(random: np.random.Generator, experts: int) -> np.ndarray:
    return random.normal(size=(TOKENS, experts)).astype(np.float32)


def test_mixtral_renormalises_the_best_two(random):
    logits = draw(random, 8)
    ids, weights = route(Routing(8, 2, normalise=True), logits)
    np.testing.assert_array_equal(ids, best(logits, 2))
    np.testing.assert_allclose(weights, softmax(np.take_along_axis(logits, ids, -1)), rtol=1e-5)


def test_v2_lite_takes_probabilities_as_they_are(random):
    logits = draw(random, 64)
    ids, weights = route(Routing(64, 6), logits)
    np.testing.assert_array_equal(ids, best(logits, 6))
    np.testing.assert_allclose(weights, np.take_along_axis(softmax(logits), ids, -1), rtol=1e-5)


@pytest.mark.parametrize(("group_score", "leaders"), [("max", 1), ("top2_sum", 2)])
def test_v2_chooses_groups_first(random, group_score, leaders):
    logits = draw(random, 160)
    rule = Routing(160, 6, scale=16.0, groups=8, groups_used=3, group_score=group_score)
    ids, weights = route(rule, logits)
    scores = softmax(logits)
    np.testing.assert_array_equal(ids, best(keep_groups(scores, 8, 3, leaders), 6))
    np.testing.assert_allclose(weights, 16 * np.take_along_axis(scores, ids, -1), rtol=1e-5)


def test_the_two_group_scores_of_v2_differ(random):
    logits = draw(random, 160)
    by_max, by_sum = (
        route(Routing(160, 6, groups=8, groups_used=3, group_score=score), logits)[0] for score in ("max", "top2_sum")
    )
    assert 0.1 < np.mean((by_max != by_sum).any(axis=-1)) < 0.9


def test_v3_chooses_with_the_bias_and_weighs_without_it(random):
    logits, bias = draw(random, 256), random.normal(size=256).astype(np.float32)
    rule = Routing(256, 8, gate="sigmoid", normalise=True, scale=2.5, groups=8, groups_used=4)
    ids, weights = route(rule, logits, bias)
    scores = sigmoid(logits)
    np.testing.assert_array_equal(ids, best(keep_groups(scores + bias, 8, 4, 2), 8))
    chosen = np.take_along_axis(scores, ids, -1)
    np.testing.assert_allclose(weights, 2.5 * chosen / chosen.sum(axis=-1, keepdims=True), rtol=1e-5)


def test_softmax_weight_takes_the_softmax_of_the_chosen(random):
    logits = draw(random, 16)
    ids, weights = route(Routing(16, 4, gate="softmax_weight"), logits)
    np.testing.assert_allclose(weights, softmax(np.take_along_axis(logits, ids, -1)), rtol=1e-5)


def test_sqrt_softplus(random):
    logits = draw(random, 16)
    ids, weights = route(Routing(16, 4, gate="sqrt_softplus"), logits)
    scores = np.sqrt(np.log1p(np.exp(logits)))
    np.testing.assert_allclose(weights, np.take_along_axis(scores, ids, -1), rtol=1e-5)


def test_vanishing_weights_are_not_divided_by_zero():
    logits = np.full((1, 4), -200, np.float32)
    _, weights = route(Routing(4, 2, gate="sigmoid", normalise=True), logits)
    assert np.isfinite(weights).all()


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"experts": 8, "used": 9}, "cannot use 9 of 8"),
        ({"experts": 8, "used": 2, "gate": "relu"}, 'unknown gating function "relu"'),
        ({"experts": 8, "used": 2, "groups": 3}, "8 experts in 3 groups"),
        ({"experts": 8, "used": 2, "groups": 2, "groups_used": 3}, "3 used"),
        ({"experts": 8, "used": 5, "groups": 2, "groups_used": 1}, "too few"),
        ({"experts": 8, "used": 2, "groups": 2, "group_score": "mean"}, 'unknown group score "mean"'),
    ],
)
def test_numbers_that_do_not_fit_are_refused(numbers, message):
    with pytest.raises(FormatError, match=message):
        Routing(**numbers)
