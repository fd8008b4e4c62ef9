"""Fusion of the choice of experts: scores, groups, the best ones and their weights, as models/routing.py makes them.

A backend whose kernel does all of it finds the nodes with `router`, which knows them by their ops' names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

from graphrt.patterns import Coming, Fused
from graphrt.splits import value_of
from graphrt.tensor import Tensor

GATES = ("none", "soft_max", "sigmoid", "sqrt_softplus")  # kernels know a gate by its place here


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


@dataclass(frozen=True)
class Most:
    """How many experts, experts used and groups a backend's kernel takes."""

    experts: int
    used: int
    groups: int


class _Chain:
    """Members of a group, found one after the other by what they read."""

    def __init__(self, coming: Coming, most: Most) -> None:
        self._coming = coming
        self.most = most
        self.members = [coming.first]

    def reader(self, value: Tensor, op: str, source: int = 0) -> Tensor | None:
        """The next node of that op that reads a value, in whatever shape, as its source of that number."""
        for node in self._coming.after_first():
            if node.op is None or node.op.name != op or node in self.members:
                continue
            src = node.srcs[source]
            if src is not None and _is_all_of(src, value) and self._coming.is_ready(node, self.members):
                return node
        return None

    def take(self, value: Tensor, op: str, source: int = 0) -> Tensor | None:
        """The same, which becomes a member."""
        node = self.reader(value, op, source)
        if node is not None:
            self.members.append(node)
        return node

    def take_only_reader(self, value: Tensor, op: str) -> Tensor | None:
        """The same, if nobody but members reads the value then."""
        node = self.reader(value, op)
        if node is None or not self._coming.readers.are_within(value, [*self.members, node]):
            return None
        return self.take(value, op)

    def are_inner(self, results: list[Tensor]) -> bool:
        """Whether nothing but members reads those of them that are not among the results, nor what is written there."""
        inner = [node for node in self.members if node not in results and node.root is node]
        return all(self._coming.readers.are_within(node, self.members) for node in inner)


def _is_all_of(src: Tensor, value: Tensor) -> bool:
    """Whether a source is a value, or all of its elements in their order in another shape."""
    if src is value:
        return True
    return value_of(src) is value and src.is_dense and value.is_dense and src.size == value.size


def router(coming: Coming, most: Most, lower: Callable[[Choice], list[Any]]) -> Fused | None:
    """From the gate's function, or the choice itself where it has none, to the last step on the weights.

    Args:
        most: larger choices are left alone.
        lower: what the backend's program runs for a choice.
    """
    chain = _Chain(coming, most)
    choice = _choice(chain)
    if choice is None or not chain.are_inner([choice.ids, choice.weights]):
        return None
    if coming.readers.are_within(choice.ids, chain.members):  # they would have no place for the kernel to write to
        return None
    return Fused(tuple(chain.members), "router", lower=partial(lower, choice))


def _choice(chain: _Chain) -> Choice | None:
    found = _scores(chain)
    if found is None:
        return None
    scores, logits, gate = found
    tokens, experts = logits.shape
    ranked, bias = scores, None
    if gate != "none" and (biased := chain.take(scores, "add")) is not None:
        ranked, bias = biased, biased.srcs[1]
        is_bias = bias is not None and bias.shape == (experts,) and bias.dtype.name == "f32"
        if not is_bias or biased.shape != logits.shape:
            return None
    choice = Choice(logits, gate, ranked, ranked, bias)
    grouped = _is_read_in_groups(chain, ranked)
    if grouped:
        masked = _best_groups(chain, ranked, choice)
        if masked is None:
            return None
        ranked = masked
    ids = chain.members[0] if gate == "none" and not grouped else chain.take(ranked, "top_k")
    if ids is None or ids.rank != 2 or ids.shape[0] != tokens or ids.shape[-1] > chain.most.used:
        return None
    choice.ids = ids
    weights = chain.take(ids, "get_rows", source=1)
    source = None if weights is None else weights.srcs[0]
    if weights is None or source is None or not _is_all_of(source, scores) or source.shape != (tokens, experts, 1):
        return None
    choice.weights = _finished(chain, weights, choice)
    return choice


def _scores(chain: _Chain) -> tuple[Tensor, Tensor, str] | None:
    """The scores, the logits that they are of, and the gate."""
    first = chain.members[0]
    if first.op is None or first.op.name not in ("soft_max", "sigmoid", "softplus", "top_k"):
        return None
    logits, gate, scores = first.srcs[0], first.op.name, first
    if logits is None or logits.rank != 2 or logits.dtype.name != "f32" or not first.size:
        return None
    if gate == "soft_max" and (any(first.srcs[1:]) or first.params["scale"] != 1.0):
        return None
    if gate == "softplus":
        root = chain.take(first, "sqrt")
        if root is None:
            return None
        scores, gate = root, "sqrt_softplus"
    if gate == "top_k":
        scores, gate = value_of(logits), "none"
        if not _is_all_of(logits, scores):
            return None
    return (scores, logits, gate) if logits.shape[-1] <= chain.most.experts and scores.shape == logits.shape else None


def _is_read_in_groups(chain: _Chain, ranked: Tensor) -> bool:
    leaders = chain.reader(ranked, "top_k")
    return leaders is not None and leaders.rank == 3


def _best_groups(chain: _Chain, ranked: Tensor, choice: Choice) -> Tensor | None:
    """The scores of experts of the best groups, -inf for the others; fills in the groups of the choice."""
    leaders = chain.take(ranked, "top_k")  # [T, G, best]
    leading = None if leaders is None else chain.take(leaders, "get_rows", source=1)
    group_scores = None if leading is None else chain.take(leading, "sum_rows")  # [T, G, 1]
    kept = None if group_scores is None else chain.take(group_scores, "top_k")  # [T, groups used]
    nothing = chain.take(ranked, "fill")  # [T, G, P]
    rows = None if kept is None else chain.take(kept, "get_rows", source=1)
    masked = None if rows is None else chain.take(rows, "set_rows", source=1)
    if leaders is None or leading is None or group_scores is None:
        return None
    if kept is None or nothing is None or rows is None or masked is None:
        return None
    tokens, groups, choice.best_of_group = leaders.shape
    choice.groups, choice.groups_used = groups, kept.shape[-1]
    grouped = (tokens, groups, ranked.shape[-1] // groups)
    reads = [(leading.srcs[0], (*grouped, 1)), (rows.srcs[0], grouped)]
    fits = all(src is not None and _is_all_of(src, ranked) and src.shape == shape for src, shape in reads)
    is_score = group_scores.shape == (tokens, groups, 1) and kept.shape == (tokens, choice.groups_used)
    written = masked.srcs[0] is nothing and masked.srcs[2] is kept and masked.params["first"] is None
    masks = nothing.shape == grouped and nothing.params["value"] == -inf
    return masked if fits and is_score and written and masks and groups <= chain.most.groups else None


def _finished(chain: _Chain, weights: Tensor, choice: Choice) -> Tensor:
    """The last result of the steps on the weights that are there; fills them in."""
    softmax = chain.reader(weights, "soft_max")
    if softmax is not None and softmax.shape == choice.ids.shape and _is_plain(softmax):
        weights = chain.take_only_reader(weights, "soft_max") or weights
        choice.softmax_of_chosen = weights is softmax
    weights = _divided(chain, weights, choice)
    scale = chain.reader(weights, "scale")
    if scale is not None and scale.params["bias"] == 0.0:
        weights = chain.take_only_reader(weights, "scale") or weights
        choice.factor = scale.params["factor"] if weights is scale else 1.0
    return weights


def _is_plain(softmax: Tensor) -> bool:
    """Whether a soft_max has neither mask nor sinks nor scale."""
    return not any(softmax.srcs[1:]) and softmax.params["scale"] == 1.0


def _divided(chain: _Chain, weights: Tensor, choice: Choice) -> Tensor:
    """The weights by their sum within limits, if the three nodes of that are there."""
    before = list(chain.members)
    total = chain.take(weights, "sum_rows")
    limited = None if total is None else chain.take(total, "clamp")
    share = None if limited is None else chain.take(limited, "div", source=1)
    if share is None or not _is_share(share, weights, choice) or not chain.are_inner([choice.ids, share]):
        chain.members[:] = before
        return weights
    assert limited is not None
    choice.limits = (limited.params["min"], limited.params["max"])
    return share


def _is_share(share: Tensor, weights: Tensor, choice: Choice) -> bool:
    """Whether a quotient is of each token's weights and one number [T, 1]."""
    part, whole = share.srcs
    if part is None or whole is None or not _is_all_of(part, weights):
        return False
    tokens, _ = shape = choice.ids.shape
    return part.shape == shape and whole.shape == (tokens, 1)
