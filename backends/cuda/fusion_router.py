"""Fusion of the choice of experts: scores, groups, the best ones and their weights, as models/routing.py makes them."""

from __future__ import annotations

from functools import partial
from math import inf

from graphrt.backends.cuda.router import MOST_EXPERTS, MOST_GROUPS, MOST_USED, Choice, route
from graphrt.patterns import Coming, Fused
from graphrt.splits import value_of
from graphrt.tensor import Tensor

Limits = tuple[float, float]


class _Chain:
    """Members of a group, found one after the other by what they read."""

    def __init__(self, coming: Coming) -> None:
        self._coming = coming
        self.members = [coming.first]

    def reader(self, value: Tensor, op: str, source: int = 0) -> Tensor | None:
        """The next node of that op that reads a value, or a view of it, as its source of that number."""
        for node in self._coming.after_first():
            if node.op is None or node.op.name != op or node in self.members:
                continue
            src = node.srcs[source]
            if src is not None and value_of(src) is value and self._coming.is_ready(node, self.members):
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


def router(coming: Coming) -> Fused | None:
    """From the gate's function, or the choice itself where it has none, to the last step on the weights."""
    chain = _Chain(coming)
    choice = _choice(chain)
    if choice is None or not chain.are_inner([choice.ids, choice.weights]):
        return None
    return Fused(tuple(chain.members), "router", lower=partial(route, choice))


def _choice(chain: _Chain) -> Choice | None:
    found = _scores(chain)
    if found is None:
        return None
    scores, logits, gate = found
    tokens, experts = logits.shape
    ranked, bias = scores, None
    if gate != "none" and (biased := chain.take(scores, "add")) is not None:
        ranked, bias = biased, biased.srcs[1]
        if bias is None or bias.shape != (experts,) or bias.dtype.name != "f32":
            return None
    choice = Choice(logits, gate, ranked, ranked, bias)
    grouped = _is_read_in_groups(chain, ranked)
    if grouped:
        masked = _best_groups(chain, ranked, choice)
        if masked is None:
            return None
        ranked = masked
    ids = chain.members[0] if gate == "none" and not grouped else chain.take(ranked, "top_k")
    if ids is None or ids.rank != 2 or ids.shape[-1] > MOST_USED:
        return None
    choice.ids = ids
    weights = chain.take(ids, "get_rows", source=1)
    source = None if weights is None else weights.srcs[0]
    if weights is None or source is None or value_of(source) is not scores or source.shape != (tokens, experts, 1):
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
    return (scores, logits, gate) if logits.shape[-1] <= MOST_EXPERTS and scores.shape == logits.shape else None


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
    if leaders is None or leading is None or kept is None or nothing is None or rows is None or masked is None:
        return None
    tokens, groups, choice.best_of_group = leaders.shape
    choice.groups, choice.groups_used = groups, kept.shape[-1]
    grouped = (tokens, groups, ranked.shape[-1] // groups)
    reads = [(leading.srcs[0], (*grouped, 1)), (rows.srcs[0], grouped)]
    fits = all(src is not None and value_of(src) is ranked and src.shape == shape for src, shape in reads)
    written = masked.srcs[0] is nothing and masked.srcs[2] is kept and masked.params["first"] is None
    masks = nothing.shape == grouped and nothing.params["value"] == -inf
    return masked if fits and written and masks and groups <= MOST_GROUPS else None


def _finished(chain: _Chain, weights: Tensor, choice: Choice) -> Tensor:
    """The last result of the steps on the weights that are there; fills them in."""
    softmax = chain.reader(weights, "soft_max")
    if softmax is not None and not any(softmax.srcs[1:]) and softmax.params["scale"] == 1.0:
        weights = chain.take_only_reader(weights, "soft_max") or weights
        choice.softmax_of_chosen = weights is softmax
    weights = _divided(chain, weights, choice)
    scale = chain.reader(weights, "scale")
    if scale is not None and scale.params["bias"] == 0.0:
        weights = chain.take_only_reader(weights, "scale") or weights
        choice.factor = scale.params["factor"] if weights is scale else 1.0
    return weights


def _divided(chain: _Chain, weights: Tensor, choice: Choice) -> Tensor:
    """The weights by their sum within limits, if the three nodes of that are there."""
    before = list(chain.members)
    total = chain.take(weights, "sum_rows")
    limited = None if total is None else chain.take(total, "clamp")
    share = None if limited is None else chain.take(limited, "div", source=1)
    is_whole = share is not None and share.srcs[0] is not None and value_of(share.srcs[0]) is weights
    if share is None or limited is None or not is_whole or not chain.are_inner([choice.ids, share]):
        chain.members[:] = before
        return weights
    choice.limits = (limited.params["min"], limited.params["max"])
    return share
