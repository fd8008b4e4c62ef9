"""Launches of the choice of experts as one kernel: what models/routing.py writes with a dozen ops."""

from __future__ import annotations

from math import inf

from graphrt.backends.cuda.elements import WARP, blocks
from graphrt.backends.cuda.launch import Address, Argument, Launch
from graphrt.backends.cuda.units import Unit
from graphrt.router_pattern import GATES, Choice, Most

SHARES = (1, 2, 4, 8, 16)  # experts of a lane
MOST = Most(experts=WARP * SHARES[-1], used=WARP, groups=WARP)
UNIT = Unit("router", [f"route<{share}>" for share in SHARES])


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
