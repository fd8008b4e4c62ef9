"""The steps of attention for one block of rows and one chunk of cells: load rows, take scores, update, mix values.

Scores are laid out panel by panel (`width` rows) and in a panel cell by cell, so that a vector holds the scores of
neighbouring rows for one cell, and the softmax needs no sums across lanes.
"""

from __future__ import annotations

import numpy as np

from graphrt.backends.cpu import attention_layout as at
from graphrt.backends.cpu.args import address, float_scalar, size, stride
from graphrt.backends.cpu.attention_layout import ROWS, setting
from graphrt.backends.cpu.attention_rotation import row_turner
from graphrt.backends.cpu.elements import FLOAT32, element_bytes, gather, loop_one
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.memory import load_f32, load_integer, load_one, store_f32, store_one
from graphrt.backends.cpu.simd import maximum, select, splat
from graphrt.backends.cpu.tile import Tile, multiply_up_to, transpose_block
from graphrt.backends.cpu.vector_math import exp, like, tanh

HIDDEN = np.float32(-np.inf)
ZERO, ONE = np.float32(0), np.float32(1)


@helper
def float_setting(args, index):
    """The float scalar `index` of a call."""
    return np.float32(float_scalar(args, at.TENSORS, index))


@helper
def scaled(x, factor, unused):
    return x * factor


def row_loader(lanes):
    """A helper: one row of q, times scale, as dense float32 filled up with zeros; all zeros past the last row."""
    scale_row = loop_one(lanes, scaled)

    @helper
    def load_row(args, kv_head, row, rows, line):
        for i in range(0, setting(args, at.KEY_PITCH), 4 * lanes):
            store_f32(line + i, "f32", splat(ZERO, lanes))
        if row >= rows:
            return
        group, kind, step = setting(args, at.GROUP), setting(args, at.Q_KIND), stride(args, at.Q, 3)
        token, head = row // group, kv_head * group + row % group
        source = address(args, at.Q) + token * stride(args, at.Q, 1) + head * stride(args, at.Q, 2)
        if step != element_bytes(kind):
            gather(line, source, kind, step, size(args, at.Q, 3))
            source, kind = line, FLOAT32
        scale_row(line, FLOAT32, source, kind, size(args, at.Q, 3), float_setting(args, at.SCALE), ZERO)

    return load_row


def rows_loader(lanes, vectors, mode, whole):
    """A helper: bring a block's rows, turned back by a rotation, to panels [width of q, rows] in the scratch memory."""
    load_row, width = row_loader(lanes), lanes * vectors
    turn_row = row_turner(lanes, mode, whole)

    @helper
    def load_rows(args, scratch, kv_head, first_row, rows, rotation):
        lines, pitch = scratch + setting(args, at.LINES), setting(args, at.KEY_PITCH)
        for r in range(0, rows, lanes):
            for i in range(lanes):
                line = lines + i * pitch
                load_row(args, kv_head, first_row + r + i, first_row + rows, line)
                if mode and rotation != 0:
                    turn_row(scratch + setting(args, at.TURNER), line + 4 * setting(args, at.FIRST), -rotation)
            panel = scratch + setting(args, at.PANELS) + r // width * width * pitch + r % width * 4
            for k in range(0, pitch // 4, lanes):
                transpose_block(lines + 4 * k, pitch, panel + 4 * width * k, 4 * width, lanes)

    return load_rows


def panel_scorer(lanes, vectors, columns):
    """A helper: scores of panels of rows, by products of tiles."""
    multiply, width = multiply_up_to(lanes, vectors, columns, False), lanes * vectors

    @helper
    def score(args, scratch, rows, cells):
        pitch, depth = setting(args, at.KEY_PITCH), size(args, at.K, 3)
        for panel in range((rows + width - 1) // width):
            queries = scratch + setting(args, at.PANELS) + panel * width * pitch
            scores = scratch + setting(args, at.SCORES) + panel * setting(args, at.PANEL_BYTES)
            for c in range(0, cells, columns):
                keys, target = scratch + setting(args, at.KEYS) + c * pitch, scores + 4 * width * c
                multiply(queries, 4 * width, keys, 4, pitch, depth, target, 4 * width, cells - c)

    return score


@helper
def hide_from(args, scratch, token, scores, step, cells):
    """Set one row's scores, `step` bytes apart, of cells that its token (counted in the block) does not see to -inf."""
    flags = scratch + setting(args, at.SEEN) + token
    for c in range(cells):
        if load_integer(flags + c * ROWS, "i8") == 0:
            store_one(scores + step * c, "f32", HIDDEN)


@helper
def hide(args, scratch, width, first_row, rows, cells):
    """The same for every row of a block, in panels."""
    group = setting(args, at.GROUP)
    for r in range(rows):
        scores = scratch + setting(args, at.SCORES) + r // width * setting(args, at.PANEL_BYTES) + r % width * 4
        hide_from(args, scratch, (first_row + r) // group - first_row // group, scores, 4 * width, cells)


def score_capper(lanes):
    """A helper: bend scores, `count` and up to a whole vector, to softcap · tanh(score / softcap)."""

    @helper
    def cap(args, scores, count):
        most = float_setting(args, at.SOFTCAP)
        for i in range(0, count, lanes):
            z = load_f32(scores + 4 * i, "f32", lanes)
            store_f32(scores + 4 * i, "f32", tanh(z * (ONE / most)) * most)

    return cap


def softmax_updater(lanes, vectors):
    """A helper: turn scores into powers, and bring each row's highest score and sum up to date.

    At FACTORS it leaves what the rows' totals so far must be multiplied with.
    """
    width = lanes * vectors

    @helper
    def update(args, scratch, result, rows, cells):
        for r in range(0, rows, lanes):
            scores = scratch + setting(args, at.SCORES) + r // width * setting(args, at.PANEL_BYTES) + r % width * 4
            highest_at, sum_at = result + 4 * r, result + setting(args, at.SUMS) + 4 * r
            before = load_f32(highest_at, "f32", lanes)
            highest = before
            for c in range(cells):
                highest = maximum(highest, load_f32(scores + 4 * width * c, "f32", lanes))
            base = select(highest == HIDDEN, like(highest, ZERO), highest)
            factor = exp(before - base)
            total = load_f32(sum_at, "f32", lanes) * factor
            for c in range(cells):
                power = exp(load_f32(scores + 4 * width * c, "f32", lanes) - base)
                store_f32(scores + 4 * width * c, "f32", power)
                total = total + power
            store_f32(highest_at, "f32", highest)
            store_f32(sum_at, "f32", total)
            store_f32(scratch + setting(args, at.FACTORS) + 4 * r, "f32", factor)

    return update


def value_mixer(lanes, vectors, shape: Tile):
    """A helper: totals = factor · totals + powers · values, for every row."""
    mix, width, columns = multiply_up_to(lanes, shape.vectors, shape.columns, True), lanes * vectors, shape.columns
    stripe = 4 * shape.rows  # bytes of a row that one tile covers

    @helper
    def add_values(args, scratch, result, rows, cells):
        totals, pitch = result + setting(args, at.TOTALS), setting(args, at.VALUE_PITCH)
        values, tile_pitch = scratch + setting(args, at.VALUES), setting(args, at.TILE_PITCH)
        for r in range(rows):
            factor = load_one(scratch + setting(args, at.FACTORS) + 4 * r, "f32")
            if factor != ONE:
                for i in range(r * pitch, (r + 1) * pitch, 4 * lanes):
                    store_f32(totals + i, "f32", load_f32(totals + i, "f32", lanes) * factor)
        for panel in range(0, rows, width):
            powers = scratch + setting(args, at.SCORES) + panel // width * setting(args, at.PANEL_BYTES)
            end = min(panel + width, rows)
            for r in range(panel, end, columns):
                x = powers + 4 * (r - panel)
                for i in range(0, pitch, stripe):
                    target = totals + r * pitch + i
                    mix(values + i, tile_pitch, x, 4 * width, 4, cells, target, pitch, end - r)

    return add_values
