"""The steps of attention by expansion for a panel of queries and a chunk of cells: scores, softmax, mix of values."""

from __future__ import annotations

from graphrt.backends.cpu import attention_layout as at
from graphrt.backends.cpu.attention_cells import HIDDEN, ONE, ZERO
from graphrt.backends.cpu.attention_layout import setting
from graphrt.backends.cpu.bf16 import interleave
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.memory import load_f32, load_one, store_f32
from graphrt.backends.cpu.mla_layout import KEY_DEPTH, QUERY_BYTES, VALUE_PANELS
from graphrt.backends.cpu.simd import select, splat
from graphrt.backends.cpu.tile import multiply_up_to
from graphrt.backends.cpu.vector_math import exp_below_zero, like


def panel_scorer(lanes, vectors, columns, pairs):
    """A helper: scores [cells, queries] of the panel of queries that begins with `token`."""
    multiply, width = multiply_up_to(lanes, vectors, columns, False, "pairs" if pairs else "f32"), lanes * vectors

    @helper
    def score(args, scratch, token, cells):
        queries = scratch + setting(args, at.PANELS) + token // width * setting(args, QUERY_BYTES)
        keys, pitch, depth = scratch + setting(args, at.KEYS), setting(args, at.KEY_PITCH), setting(args, KEY_DEPTH)
        for c in range(0, cells, columns):
            target = scratch + setting(args, at.SCORES) + 4 * width * c
            multiply(queries, 4 * width, keys + c * pitch, 4, pitch, depth, target, 4 * width, cells - c)

    return score


def softmax_updater(lanes, vectors, pairs):
    """A helper: turn a panel's scores into powers, in words, and bring its highest scores and sums up to date.

    At FACTORS it leaves what the totals so far must be multiplied with.
    """
    width = lanes * vectors

    @helper
    def update(args, scratch, result, token, cells):
        for i in range(0, width, lanes):
            scores, highest_at = scratch + setting(args, at.SCORES) + 4 * i, result + 4 * (token + i)
            sum_at = highest_at + setting(args, at.SUMS)
            before = load_f32(highest_at, "f32", lanes)
            highest = before
            for c in range(cells):
                score = load_f32(scores + 4 * width * c, "f32", lanes)
                highest = select(highest < score, score, highest)
            base = select(highest == HIDDEN, like(highest, ZERO), highest)
            factor = exp_below_zero(before - base)
            total = load_f32(sum_at, "f32", lanes) * factor
            if pairs:
                if cells % 2:
                    store_f32(scores + 4 * width * cells, "f32", splat(HIDDEN, lanes))
                for c in range(0, cells, 2):
                    first = exp_below_zero(load_f32(scores + 4 * width * c, "f32", lanes) - base)
                    second = exp_below_zero(load_f32(scores + 4 * width * (c + 1), "f32", lanes) - base)
                    store_f32(scores + 2 * width * c, "f32", interleave(first, second))
                    total = total + (first + second)
            else:
                for c in range(cells):
                    power = exp_below_zero(load_f32(scores + 4 * width * c, "f32", lanes) - base)
                    store_f32(scores + 4 * width * c, "f32", power)
                    total = total + power
            store_f32(highest_at, "f32", highest)
            store_f32(sum_at, "f32", total)
            store_f32(scratch + setting(args, at.FACTORS) + 4 * i, "f32", factor)

    return update


def value_mixer(lanes, vectors, columns, pairs):
    """A helper: totals = factor · totals + powers · values, for the queries of a panel."""
    multiply, width = multiply_up_to(lanes, vectors, columns, True, "pairs" if pairs else "f32"), lanes * vectors

    @helper
    def mix(args, scratch, result, token, tokens, cells):
        pitch, depth = setting(args, at.VALUE_PITCH), (cells + 1) // 2 if pairs else cells
        totals = result + setting(args, at.TOTALS) + token * pitch
        for r in range(tokens):
            factor = load_one(scratch + setting(args, at.FACTORS) + 4 * r, "f32")
            if factor != ONE:
                for i in range(r * pitch, (r + 1) * pitch, 4 * lanes):
                    store_f32(totals + i, "f32", load_f32(totals + i, "f32", lanes) * factor)
        for panel in range(setting(args, VALUE_PANELS)):
            values = scratch + setting(args, at.VALUES) + panel * setting(args, at.PANEL_BYTES)
            for r in range(0, tokens, columns):
                powers, target = scratch + setting(args, at.SCORES) + 4 * r, totals + r * pitch + 4 * width * panel
                multiply(values, 4 * width, powers, 4 * width, 4, depth, target, pitch, tokens - r)

    return mix
