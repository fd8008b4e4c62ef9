"""Routing: which experts a token goes to, and how much each counts.

T tokens, E experts, U experts used, G groups of experts, P = E / G experts in a group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from graphrt import ops
from graphrt.errors import FormatError
from graphrt.tensor import Tensor

SMALLEST_SUM = 6.103515625e-5  # the smallest normal f16 number: what sums of weights are clamped to, as in llama.cpp

# Router logits [T, E] -> scores [T, E]. "softmax_weight" ranks by logits and takes the softmax over the chosen ones.
GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": ops.soft_max,
    "sigmoid": ops.sigmoid,
    "softmax_weight": lambda logits: logits,
    "sqrt_softplus": lambda logits: ops.sqrt(ops.softplus(logits)),
}

# How many of a group's best experts add up to the group's score.
GROUP_SCORES = {"max": 1, "top2_sum": 2}


@dataclass(frozen=True)
class Routing:
    """A routing rule.

    Args:
        experts, used: E and U.
        gate: how logits become scores; a key of GATES.
        normalise: divide the chosen scores by their sum.
        scale: factor on the weights, after that.
        groups, groups_used: where groups > 1, only experts of the best `groups_used` groups can be chosen.
        group_score: "top2_sum" (DeepSeek-V3; llama.cpp for all) or "max" (DeepSeek-V2 as trained).
    Raises: FormatError if the numbers do not fit each other.
    """

    experts: int
    used: int
    gate: str = "softmax"
    normalise: bool = False
    scale: float = 1.0
    groups: int = 1
    groups_used: int = 1
    group_score: str = "top2_sum"

    def __post_init__(self) -> None:
        if self.gate not in GATES:
            raise FormatError(f'[routing] unknown gating function "{self.gate}"; known: {", ".join(GATES)}')
        if self.group_score not in GROUP_SCORES:
            raise FormatError(f'[routing] unknown group score "{self.group_score}"; known: {", ".join(GROUP_SCORES)}')
        if not 0 < self.used <= self.experts:
            raise FormatError(
                f"[routing] cannot use {self.used} of {self.experts} experts; the file's metadata is wrong"
            )
        if self.groups > 1:
            self._check_groups()

    def _check_groups(self) -> None:
        if self.experts % self.groups or not 0 < self.groups_used <= self.groups:
            raise FormatError(
                f"[routing] {self.experts} experts in {self.groups} groups, {self.groups_used} used: "
                f"the groups must be equal, and no more used than there are; the file's metadata is wrong"
            )
        per_group = self.experts // self.groups
        if self.used > self.groups_used * per_group or GROUP_SCORES[self.group_score] > per_group:
            raise FormatError(
                f"[routing] {self.groups_used} groups of {per_group} experts are too few for {self.used} experts used "
                f'and the group score "{self.group_score}"; the file\'s metadata is wrong'
            )

    def __call__(self, logits: Tensor, bias: Tensor | None, layer: int) -> tuple[Tensor, Tensor]:
        """Choose experts.

        Args:
            logits: [T, E] f32, of the router.
            bias: [E] f32, added to the scores for the choice only (DeepSeek-V3), or None.
            layer: number of the layer, for the nodes' names.
        Returns: expert ids [T, U] i32, best first; their weights [T, U] f32.
        """
        tokens = logits.shape[0]
        scores = GATES[self.gate](logits)  # [T, E]
        if scores is not logits:
            scores.named(f"ffn_moe_probs-{layer}")
        ranked = scores  # [T, E]
        if bias is not None:
            ranked = ops.add(scores, bias).named(f"ffn_moe_probs_biased-{layer}")  # [T, E]
        if self.groups > 1:
            ranked = self._keep_best_groups(ranked).named(f"ffn_moe_probs_masked-{layer}")  # [T, E]
        ids = ops.top_k(ranked, k=self.used).named(f"ffn_moe_topk-{layer}")  # [T, U] i32
        weights = ops.get_rows(scores.reshape(tokens, self.experts, 1), ids).reshape(tokens, self.used)  # [T, U]
        return ids, self._weigh(weights).named(f"ffn_moe_weights-{layer}")

    def _keep_best_groups(self, scores: Tensor) -> Tensor:
        """Scores [T, E] with -inf for every expert outside the best groups."""
        tokens, per_group = scores.shape[0], self.experts // self.groups
        best = GROUP_SCORES[self.group_score]
        grouped = scores.reshape(tokens, self.groups, per_group)  # [T, G, P]
        leaders = ops.top_k(grouped, k=best)  # [T, G, best] i32
        leading = ops.get_rows(grouped.reshape(tokens, self.groups, per_group, 1), leaders)  # [T, G, best, 1]
        group_scores = ops.sum_rows(leading.reshape(tokens, self.groups, best))  # [T, G, 1]
        kept = ops.top_k(group_scores.reshape(tokens, self.groups), k=self.groups_used)  # [T, groups_used] i32
        nothing = ops.fill(grouped, value=-inf)  # [T, G, P]
        masked = ops.set_rows(nothing, ops.get_rows(grouped, kept), kept)  # [T, G, P]
        return masked.reshape(tokens, self.experts)  # [T, E]

    def _weigh(self, weights: Tensor) -> Tensor:
        """The weights [T, U] after softmax, normalisation and scale, where the rule has them."""
        if self.gate == "softmax_weight":
            weights = ops.soft_max(weights)
        if self.normalise:
            weights = ops.div(weights, ops.clamp(ops.sum_rows(weights), min=SMALLEST_SUM, max=inf))
        if self.scale not in (0.0, 1.0):
            weights = ops.scale(weights, factor=self.scale)
        return weights
