"""Kernel of the choice of experts: scores of logits, groups, the best experts and their weights, a token at a time.

What models/routing.py writes with a dozen ops; the arithmetic is theirs, so that the results are the same, bit for bit.
"""

from __future__ import annotations

from math import inf

import numpy as np

from graphrt.backends.cpu import host, simd
from graphrt.backends.cpu.args import address, float_scalar, rows, scalar, share, size
from graphrt.backends.cpu.elements import FLOAT32, PIECE, keep_first, piece_of, stack_floats
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.jit import native
from graphrt.backends.cpu.memory import (
    load_f32,
    load_f32_first,
    load_integer,
    load_one,
    store_f32,
    store_f32_first,
    store_integer,
    store_one,
)
from graphrt.backends.cpu.ranking import HIDDEN_KEY, best_of, rank_of
from graphrt.backends.cpu.registry import Call
from graphrt.backends.cpu.simd import fma
from graphrt.backends.cpu.softmax import HIDDEN, highest_of, powers_of, share_of_total, sum_of
from graphrt.backends.cpu.sort import INDEX_MASK
from graphrt.backends.cpu.vector_math import like, sigmoid, softplus
from graphrt.router_pattern import GATES, Choice, Most

MOST = Most(experts=PIECE, used=PIECE, groups=PIECE)  # a token's scores lie on the stack
KEYS = 2 * PIECE + 32  # floats of room for keys, and a vector of them past the last
SOFTMAX, SIGMOID, SQRT_SOFTPLUS = (GATES.index(name) for name in ("soft_max", "sigmoid", "sqrt_softplus"))


def distribution_of(lanes):
    """A helper: the softmax of `count` logits at `buffer`, in their place; there is room for whole vectors."""
    highest_logit, powers = highest_of(lanes), powers_of(lanes)

    @helper
    def distribution(buffer, count):
        whole = count - count % lanes
        if whole < count:
            rest = load_f32(buffer + 4 * whole, "f32", lanes)
            store_f32(buffer + 4 * whole, "f32", keep_first(rest, count - whole, HIDDEN))
        highest = highest_logit(buffer, count)
        if highest == HIDDEN:
            highest = np.float32(0)
        total = np.float64(powers(buffer, count, highest))
        factor = np.float32(1.0 / total) if total != 0.0 else np.float32(0)
        for i in range(0, count, lanes):
            z = load_f32(buffer + 4 * i, "f32", lanes)
            store_f32(buffer + 4 * i, "f32", share_of_total(z, highest, factor))

    return distribution


@helper
def chosen_of(values, ids, count, target):
    """Bring the values of these numbers side by side."""
    for i in range(count):
        store_one(target + 4 * i, "f32", load_one(values + 4 * load_integer(ids + 4 * i, "i32"), "f32"))


def router(lanes):
    """Writes ids and weights; tensor 2 is the logits, 3 the bias.

    Scalars: the gate; groups, groups used, best of a group; whether the weights are the softmax of the chosen, are
    divided by their sum, and scaled; the sum's limits, the factor.
    """
    distribution, add_up = distribution_of(lanes), sum_of(lanes)
    rank, best_few = rank_of(lanes), best_of(lanes)

    @helper
    def score(logits, gate, count, scores):
        for i in range(0, count, lanes):
            x = load_f32_first(logits + 4 * i, "f32", lanes, count - i)
            if gate == SIGMOID:
                x = sigmoid(x)
            elif gate == SQRT_SOFTPLUS:
                x = simd.sqrt(softplus(x))
            store_f32(scores + 4 * i, "f32", x)
        if gate == SOFTMAX:
            distribution(scores, count)

    @helper
    def add_bias(scores, bias, count, ranked):
        for i in range(0, count, lanes):
            total = load_f32(scores + 4 * i, "f32", lanes) + load_f32_first(bias + 4 * i, "f32", lanes, count - i)
            store_f32(ranked + 4 * i, "f32", total)

    @helper
    def keep_best_groups(ranked, groups, groups_used, best, length, keys):
        """Make the keys of experts outside the best groups those of -inf."""
        ids, leading, totals = stack_floats(PIECE), stack_floats(PIECE), stack_floats(PIECE)
        group_keys = stack_floats(KEYS)
        for group in range(groups):
            best_few(keys + 8 * group * length, length, best, ids)
            chosen_of(ranked, ids, best, leading)
            store_one(totals + 4 * group, "f32", add_up(leading, FLOAT32, best))
        rank(totals, groups, group_keys)
        best_few(group_keys, groups, groups_used, ids)
        for group in range(groups):
            is_kept = False
            for i in range(groups_used):
                is_kept = is_kept or load_integer(ids + 4 * i, "i32") == group
            if not is_kept:
                for i in range(group * length, (group + 1) * length):
                    store_integer(keys + 8 * i, "i64", HIDDEN_KEY | (INDEX_MASK - i))

    @helper
    def weigh(args, buffer, count, target):
        softmax, divided, scaled = scalar(args, 4, 4), scalar(args, 4, 5), scalar(args, 4, 6)
        low, high = np.float32(float_scalar(args, 4, 7)), np.float32(float_scalar(args, 4, 8))
        factor = np.float32(float_scalar(args, 4, 9))
        if softmax:
            distribution(buffer, count)
        total = np.float32(1)
        if divided:
            total = add_up(buffer, FLOAT32, count)
            # No minimum and maximum: these would drop NaN.
            total = low if total < low else total
            total = high if total > high else total
        for i in range(0, count, lanes):
            weight = load_f32(buffer + 4 * i, "f32", lanes)
            if divided:
                weight = weight / total
            if scaled:
                weight = fma(weight, like(weight, factor), like(weight, np.float32(0)))
            store_f32_first(target + 4 * i, "f32", weight, count - i)

    def run(args, ith, nth):
        gate, groups, groups_used, best = scalar(args, 4, 0), scalar(args, 4, 1), scalar(args, 4, 2), scalar(args, 4, 3)
        given, scores, biased = stack_floats(PIECE), stack_floats(PIECE), stack_floats(PIECE)
        weights, keys = stack_floats(PIECE), stack_floats(KEYS)
        experts, used = size(args, 2, 3), size(args, 0, 3)
        first, last = share(rows(args, 2), ith, nth)
        for token in range(first, last):
            ids, target = address(args, 0) + 4 * token * used, address(args, 1) + 4 * token * used
            logits, _ = piece_of(args, 2, FLOAT32, False, token, 0, experts, given)
            score(logits, gate, experts, scores)
            ranked = scores
            if address(args, 3):
                bias, _ = piece_of(args, 3, FLOAT32, False, 0, 0, experts, given)
                add_bias(scores, bias, experts, biased)
                ranked = biased
            rank(ranked, experts, keys)
            if groups > 1:
                keep_best_groups(ranked, groups, groups_used, best, experts // groups, keys)
            best_few(keys, experts, used, ids)
            chosen_of(scores, ids, used, weights)
            weigh(args, weights, used, target)

    return run


def calls(choice: Choice) -> list[Call]:
    """The call of a choice."""
    tensors = [choice.ids, choice.weights, choice.logits, choice.bias]
    rule = [GATES.index(choice.gate), choice.groups, choice.groups_used, choice.best_of_group]
    finish = [choice.softmax_of_chosen, choice.limits is not None, choice.factor != 1.0]
    low, high = choice.limits or (-inf, inf)
    scalars = [*rule, *finish, float(low), float(high), float(choice.factor)]
    tokens, experts = choice.logits.shape
    work = tokens * (500 + 8 * experts)  # from a token's time, beside that of soft_max
    return [Call(native(router, host.level().lanes), tensors, scalars, results=2, work=work)]
