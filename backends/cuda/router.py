"""Launches of the choice of experts as one kernel: what models/routing.py writes with a dozen ops."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from graphrt.backends.cuda.elements import WARP, blocks
from graphrt.backends.cuda.launch import Address, Argument, Launch
from graphrt.backends.cuda.units import Unit
from graphrt.tensor import Tensor

GATES = ("none", "soft_max", "sigmoid", "sqrt_softplus")  # Gate of router.cu
SHARES = (1, 2, 4, 8, 16)  # experts of a lane
MOST_EXPERTS, MOST_USED, MOST_GROUPS = WARP * SHARES[-1], WARP, WARP
UNIT = Unit("router", [f"route<{share}>" for share in SHARES])


@dataclass
class Choice:
    """A choice of experts among the nodes of a graph.

    Args:
        logits: [T, E] f32.
        gate: one of GATES.
        bias: [E] f32 on the scores for the choice, or None.
        groups, groups_used, best_of_group: groups 1: all experts can be chosen; else those of the best groups, a
            group's score being the sum of so many of its best.
        ids: [T, U] i32.
        weights: [T, U] f32.
        softmax_of_chosen: the weights are the softmax over the chosen ones' scores.
        limits: of the sum that the weights are divided by; None where they are not.
        factor: on the weights.
    """

    logits: Tensor
    gate: str
    ids: Tensor
    weights: Tensor
    bias: Tensor | None = None
    groups: int = 1
    groups_used: int = 1
    best_of_group: int = 1
    softmax_of_chosen: bool = False
    limits: tuple[float, float] | None = None
    factor: float = 1.0


def route(choice: Choice) -> list[Launch]:
    """The launch of a choice."""
    tokens, experts = choice.logits.shape
    share = next(share for share in SHARES if WARP * share >= experts)
    step = 0 if choice.bias is None else choice.bias.strides[-1]
    groups = [choice.groups, choice.groups_used, choice.best_of_group]
    low, high = choice.limits or (-inf, inf)
    finish = [choice.softmax_of_chosen, choice.limits is not None, float(low), float(high), float(choice.factor)]
    results: list[Argument] = [Address(choice.ids), Address(choice.weights), choice.logits, Address(choice.bias), step]
    arguments = [*results, GATES.index(choice.gate), choice.ids.shape[-1], *groups, *finish]
    return [Launch(UNIT.kernel(f"route<{share}>"), [blocks(tokens, 4)], [WARP, 4], arguments)]
