"""The steps of attention for a panel of rows and a chunk of cells: load rows, take scores, update, mix values.

Scores are laid out cell by cell, so that a vector holds those of neighbouring rows for one cell, and the softmax needs
no sums across lanes.
"""

from __future__ import annotations

import numpy as np

from graphrt.backends.cpu import attention_layout as at
from graphrt.backends.cpu.args import address, float_scalar, size, stride
from graphrt.backends.cpu.attention_cells import HIDDEN, ONE, ZERO, load_position, padded_rows, row_of
from graphrt.backends.cpu.attention_layout import CELLS, KEY_FACTORS_STEP, setting
from graphrt.backends.cpu.attention_parts import factors_finder, parts_packer
from graphrt.backends.cpu.attention_rotation import row_turner
from graphrt.backends.cpu.dot import store_bytes
from graphrt.backends.cpu.elements import FLOAT32, element_bytes, gather, loop_one
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.int16 import lower_halves, multiply_onto, multiply_rows, rounded
from graphrt.backends.cpu.memory import load_f32, load_one, store_f32
from graphrt.backends.cpu.simd import fma, select, splat, sqrt
from graphrt.backends.cpu.tile import Tile, multiply_up_to, transpose_block
from graphrt.backends.cpu.vector_math import exp_below_zero, like, tanh

LEAST_POWERS = np.float32(1e-36)  # of a sum of squares: smaller ones count as 0


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


def rows_loader(lanes, vectors, mode, whole, integers):
    """A helper: bring a block's rows, turned back by a rotation, to panels [words, rows], and what they see."""
    load_row, width = row_loader(lanes), lanes * vectors
    turn_row, find_factors, pack_parts = row_turner(lanes, mode, whole), factors_finder(lanes), parts_packer(lanes)

    @helper
    def load_rows(args, scratch, kv_head, first_row, rows, rotation):
        lines, pitch, group = scratch + setting(args, at.LINES), setting(args, at.KEY_PITCH), setting(args, at.GROUP)
        words = pitch // 8 if integers else pitch // 4
        for r in range(0, padded_rows(args), lanes):
            for i in range(lanes):
                line, row = lines + i * pitch, first_row + r + i
                load_row(args, kv_head, row, first_row + rows, line)
                load_position(args, scratch, r + i, row // group if r + i < rows else size(args, at.Q, 1))
                if mode and rotation != 0:
                    turn_row(scratch + setting(args, at.TURNER), line + 4 * setting(args, at.FIRST), -rotation)
                if integers:
                    factors = scratch + setting(args, at.QUERY_FACTORS) + 4 * (r + i)
                    find_factors(args, line, factors, setting(args, at.SUMS))
                    pack_parts(args, line, factors, setting(args, at.SUMS), line)
            panel = scratch + setting(args, at.PANELS) + r // width * setting(args, at.QUERY_BYTES) + r % width * 4
            for k in range(0, words, lanes):
                transpose_block(lines + 4 * k, pitch, panel + 4 * width * k, 4 * width, lanes)

    return load_rows


def panel_scorer(lanes, vectors, columns, integers):
    """A helper: scores [cells, rows] of the panel that begins with `row` of the block, by products of tiles."""
    multiply, width = multiply_up_to(lanes, vectors, columns, False), lanes * vectors
    multiply_parts = parts_scorer(lanes, vectors)

    @helper
    def score(args, scratch, kv_head, row, first_cell, cells):
        queries = scratch + setting(args, at.PANELS) + row // width * setting(args, at.QUERY_BYTES)
        keys, pitch, depth = scratch + setting(args, at.KEYS), setting(args, at.KEY_ROW), size(args, at.K, 3)
        scores, step = scratch + setting(args, at.SCORES), 4 * width
        if integers:
            # While the first panel is multiplied, the next chunk's keys are asked for.
            ahead, ahead_pitch = keys, pitch
            if row == 0:
                ahead, ahead_pitch = row_of(args, at.K, kv_head, first_cell + CELLS), stride(args, at.K, 1)
            multiply_parts(args, scratch, queries, row, cells, ahead, ahead_pitch)
        else:
            for c in range(0, cells, columns):
                multiply(queries, step, keys + c * pitch, 4, pitch, depth, scores + c * step, step, cells - c)

    return score


def parts_scorer(lanes, vectors):
    """A helper: the same by products of int16, part by part; asks for a row of two bytes an element for each key."""
    at_once, step = 16 // vectors, 4 * lanes * vectors

    @helper
    def multiply_parts(args, scratch, queries, row, cells, ahead, ahead_pitch):
        keys, pitch, depth = scratch + setting(args, at.KEYS), setting(args, at.KEY_ROW), size(args, at.K, 3)
        scores, most = scratch + setting(args, at.SCORES), setting(args, at.PART_WIDTH)
        by_row = scratch + setting(args, at.QUERY_FACTORS) + 4 * row
        by_key = scratch + setting(args, at.KEY_FACTORS)
        for start in range(0, depth, most):
            panel, words = queries + start // 2 * step, (min(most, depth - start) + 1) // 2
            for c in range(0, cells, at_once):
                x, y, factors = keys + c * pitch + 2 * start, scores + c * step, by_key + 4 * c
                later, onto = ahead + c * ahead_pitch + 2 * start, start
                multiply_rows(
                    panel, step, x, pitch, words, y, step, by_row, factors, onto, later, ahead_pitch, vectors, at_once
                )
            by_row += setting(args, at.SUMS)
            by_key += KEY_FACTORS_STEP

    return multiply_parts


def score_capper(lanes):
    """A helper: bend scores, `count` and up to a whole vector, to softcap · tanh(score / softcap)."""

    @helper
    def cap(args, scores, count):
        most = float_setting(args, at.SOFTCAP)
        for i in range(0, count, lanes):
            z = load_f32(scores + 4 * i, "f32", lanes)
            store_f32(scores + 4 * i, "f32", tanh(z * (ONE / most)) * most)

    return cap


def softmax_updater(lanes, vectors, integers):
    """A helper: turn a panel's scores into powers, and bring each row's highest score and sum up to date.

    At FACTORS it leaves what the rows' totals so far must be multiplied with. Integers: powers times the factors of
    values become pairs of neighbouring cells; what their products must be multiplied with follows at FACTORS.
    """
    width = lanes * vectors

    @helper
    def find_base(args, result, scores, row, cells):
        highest = load_f32(result + 4 * row, "f32", lanes)
        for c in range(cells):
            score = load_f32(scores + 4 * width * c, "f32", lanes)
            highest = select(highest < score, score, highest)
        return highest, select(highest == HIDDEN, like(highest, ZERO), highest)

    @helper
    def pack_powers(scores, squares, norm, cells):
        """Powers, given the sum of their squares, as integers of that norm; gives their factor."""
        kept = select(squares < LEAST_POWERS, splat(ONE, lanes), squares)
        to_integers = splat(norm, lanes) / sqrt(kept)
        to_integers = select(squares < LEAST_POWERS, splat(ZERO, lanes), to_integers)
        for c in range(0, cells, 2):
            place = scores + 4 * width * c
            first = rounded(load_f32(place, "f32", lanes), to_integers)
            second = rounded(load_f32(place + 4 * width, "f32", lanes), to_integers)
            store_bytes(scores + 2 * width * c, lower_halves(first, second, True))
        return sqrt(squares) * (ONE / norm)

    @helper
    def update(args, scratch, result, row, cells, value_factor, norm):
        for i in range(0, width, lanes):
            scores, highest_at = scratch + setting(args, at.SCORES) + 4 * i, result + 4 * (row + i)
            sum_at, factors = highest_at + setting(args, at.SUMS), scratch + setting(args, at.FACTORS) + 4 * i
            before = load_f32(highest_at, "f32", lanes)
            highest, base = find_base(args, result, scores, row + i, cells)
            factor = exp_below_zero(before - base)
            total = load_f32(sum_at, "f32", lanes) * factor
            if integers:
                by_cell, squares = scratch + setting(args, at.VALUE_FACTORS), splat(ZERO, lanes)
                for c in range(cells):
                    power = exp_below_zero(load_f32(scores + 4 * width * c, "f32", lanes) - base)
                    total = total + power
                    power = power * load_one(by_cell + 4 * c, "f32")
                    squares = fma(power, power, squares)
                    store_f32(scores + 4 * width * c, "f32", power)
                if cells % 2:
                    store_f32(scores + 4 * width * cells, "f32", splat(ZERO, lanes))
                store_f32(factors + 4 * width, "f32", pack_powers(scores, squares, norm, cells) * value_factor)
            else:
                for c in range(cells):
                    power = exp_below_zero(load_f32(scores + 4 * width * c, "f32", lanes) - base)
                    store_f32(scores + 4 * width * c, "f32", power)
                    total = total + power
            store_f32(highest_at, "f32", highest)
            store_f32(sum_at, "f32", total)
            store_f32(factors, "f32", factor)

    return update


def value_mixer(lanes, vectors, shape: Tile, integers):
    """A helper: totals = factor · totals + powers · values, for the rows of a panel."""
    mix, width, columns = multiply_up_to(lanes, shape.vectors, shape.columns, True), lanes * vectors, shape.columns
    stripe = 4 * shape.rows  # bytes of a row that one tile covers
    stripes = shape.vectors
    at_once = 16 // stripes

    @helper
    def rescale(args, scratch, totals, pitch, rows):
        for r in range(rows):
            factor = load_one(scratch + setting(args, at.FACTORS) + 4 * r, "f32")
            if factor != ONE:
                for i in range(r * pitch, (r + 1) * pitch, 4 * lanes):
                    store_f32(totals + i, "f32", load_f32(totals + i, "f32", lanes) * factor)

    @helper
    def add_values(args, scratch, result, row, rows, cells):
        pitch, panel = setting(args, at.VALUE_PITCH), setting(args, at.PANEL_BYTES)
        totals, powers = result + setting(args, at.TOTALS) + row * pitch, scratch + setting(args, at.SCORES)
        tile_pitch, factors = setting(args, at.TILE_PITCH), scratch + setting(args, at.FACTORS)
        if not integers:
            rescale(args, scratch, totals, pitch, rows)
        for number in range(pitch // stripe):
            values, target = scratch + setting(args, at.VALUES) + number * panel, totals + number * stripe
            if integers:
                depth = (cells + 1) // 2
                for r in range(0, rows, at_once):
                    x, y, by_row = powers + 4 * r, target + r * pitch, factors + 4 * r
                    others = by_row + 4 * width
                    multiply_onto(values, tile_pitch, x, 4 * width, depth, y, pitch, by_row, others, stripes, at_once)
            else:
                for r in range(0, rows, columns):
                    y = target + r * pitch
                    mix(values, tile_pitch, powers + 4 * r, 4 * width, 4, cells, y, pitch, rows - r)

    return add_values
