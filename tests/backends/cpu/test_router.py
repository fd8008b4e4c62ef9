"""The choice of experts as one kernel: the ids and weights are those of its dozen nodes one by one, bit for bit."""

import numpy as np
import pytest

import graphrt
from graphrt import Graph, Scheduler, Tensor, ops
from graphrt.backends.cpu import host
from graphrt.backends.cpu.jit import native
from graphrt.backends.cpu.router import router
from graphrt.models.routing import Routing
from tests.backends.cpu.test_cross_targets import ARM, calls_nothing_unknown

RULES = {
    "mixtral": Routing(8, 2, normalise=True),
    "v2_lite": Routing(64, 6),
    "v2": Routing(160, 6, groups=8, groups_used=3, group_score="max", scale=16.0),
    "v3": Routing(256, 8, gate="sigmoid", normalise=True, scale=2.5, groups=8, groups_used=4),
    "softmax of the chosen": Routing(32, 4, gate="softmax_weight"),
    "softplus": Routing(384, 6, gate="sqrt_softplus", normalise=True),
    "many": Routing(512, 10, normalise=True),
    "more than a vector used": Routing(1024, 40),
    "odd numbers": Routing(27, 7, gate="sigmoid", groups=3, groups_used=2),
    "one": Routing(5, 1, gate="softmax_weight"),
}
BIASED = ("v3", "softplus", "odd numbers")


def logits_of(tokens: int, experts: int) -> np.ndarray:
    """Random numbers; of 40 tokens some rows have ties, NaN, infinities, or nothing else."""
    logits = np.random.default_rng(tokens).standard_normal((tokens, experts)).astype(np.float32) * 3
    if tokens == 40:
        logits[0], logits[1], logits[2], logits[3] = 0.5, np.nan, -np.inf, -200.0
        logits[4, 3], logits[5, ::2], logits[6, -2:], logits[7, 1] = np.nan, np.nan, np.inf, -np.inf
        logits[8, ::2], logits[8, 1::2] = 0.0, -0.0
        logits[9:20] = np.round(logits[9:20])
    return logits


def chosen(rule: Routing, logits: Tensor, biased: bool = False) -> list[Tensor]:
    """Ids and weights."""
    bias = np.random.default_rng(7).standard_normal(rule.experts).astype(np.float32)
    return list(rule(logits, graphrt.constant("bias", bias) if biased else None, 0))


def groups_of(nodes: list[Tensor]) -> list[str]:
    """The fusions of a graph of these nodes."""
    schedule = Scheduler(["cpu"]).schedule(Graph(nodes))
    return [fusion.fusion for part in schedule.explain().splits for fusion in part.fusions]


def assert_alike(nodes: list[Tensor], threads: int = 2) -> None:
    """Fused, the results are those of the nodes one by one, and nearly those of the reference."""
    fused, alone = (Scheduler(["cpu"], threads=threads, fuse=fuse).plan(Graph(nodes)).run() for fuse in (1, 0))
    exact = Scheduler(["reference"]).plan(Graph(nodes)).run()
    for got, same, near in zip(fused, alone, exact, strict=True):
        np.testing.assert_array_equal(got, same)
        np.testing.assert_allclose(got, near, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("level", host.levels())
@pytest.mark.parametrize("name", RULES)
def test_router(name, level):
    rule = RULES[name]
    with host.use_level(level):
        for tokens in (1, 3, 40):
            nodes = chosen(rule, graphrt.constant("x", logits_of(tokens, rule.experts)), name in BIASED)
            assert groups_of(nodes) == ["router"]
            assert_alike(nodes, threads=1 if tokens == 3 else 2)


def test_logits_and_bias_may_be_strided():
    rule = RULES["odd numbers"]
    logits = graphrt.constant("x", logits_of(6, 54)).reshape(6, 27, 2)[:, :, 1]
    bias = graphrt.constant("bias", logits_of(1, 54).reshape(27, 2))[:, 1]
    nodes = list(rule(logits, bias, 0))
    assert groups_of(nodes) == ["router"]
    assert_alike(nodes)


def named(nodes: list[Tensor], name: str) -> Tensor:
    """The node of that name."""
    return next(node for node in Graph(nodes).nodes if node.name == name)


@pytest.mark.parametrize("name", ["ffn_moe_probs-0", "ffn_moe_probs_biased-0", "ffn_moe_probs_masked-0"])
def test_inner_results_that_are_outputs_are_kept(name):
    nodes = chosen(RULES["v3"], graphrt.constant("x", logits_of(3, 256)), biased=True)
    nodes.append(named(nodes, name))
    assert groups_of(nodes) == []
    assert_alike(nodes)


def test_a_choice_by_scores_that_others_read_is_fused_without_the_gate():
    nodes = chosen(RULES["v2_lite"], graphrt.constant("x", logits_of(3, 64)))
    nodes.append(named(nodes, "ffn_moe_probs-0"))
    assert groups_of(nodes) == ["router"]
    assert_alike(nodes)


def test_weights_that_others_read_are_the_last_of_the_choice():
    ids, weights = chosen(RULES["v2_lite"], graphrt.constant("x", logits_of(3, 64)))
    nodes = [ids, weights, ops.scale(weights, factor=3.0)]
    assert groups_of(nodes) == ["router"]
    assert_alike(nodes)


X = graphrt.constant("x", logits_of(6, 12))
SCORES = ops.sigmoid(X)


def gathered(ids: Tensor) -> Tensor:
    return ops.get_rows(SCORES.reshape(6, 12, 1), ids)


def by_another_sum(weights: Tensor) -> Tensor:
    """Weights [6, 6] by the sums of other tokens' weights."""
    sums = ops.clamp(ops.sum_rows(weights.reshape(6, 6)), min=0.1, max=9.0)
    return ops.div(weights.reshape(6, 6), sums.reshape(1, 6))


IDS = ops.top_k(SCORES, k=6)
OTHERS = {
    "nobody reads the ids": [gathered(IDS)],
    "the best of a part": [part := ops.top_k(SCORES[:, 4:], k=3), gathered(part)],
    "a softmax of each weight": [IDS, ops.soft_max(gathered(IDS))],
    "sums of other tokens": [IDS, by_another_sum(gathered(IDS))],
    "a bias for each token": [
        biased := ops.top_k(ops.add(SCORES, graphrt.constant("b", logits_of(6, 12))), k=2),
        gathered(biased),
    ],
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_only_looks_like_a_choice_is_computed_as_it_stands(name):
    assert_alike(OTHERS[name])


def test_more_experts_than_the_kernel_takes_are_left_alone():
    nodes = chosen(Routing(1025, 4), graphrt.constant("x", logits_of(2, 1025)))
    assert groups_of(nodes) == []
    assert_alike(nodes)


def test_the_kernel_compiles_for_arm():
    with host.use_level(ARM.levels[0], ARM):
        code = native(router, host.level().lanes).assembly()
    assert calls_nothing_unknown(code, ARM)
