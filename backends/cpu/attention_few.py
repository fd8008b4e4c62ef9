"""Attention of few rows, as in decoding: bound by reading the cache, so keys and values are read where they lie.

A task is a run of kv heads: chunk by chunk it goes through all of them, since their rows lie side by side in memory.
Scores are laid out row by row. Rows that are quantized, or no whole vectors, go through the tiles of
attention_cells.py, and so do the values of chunks in which some cells are hidden.
"""

from __future__ import annotations

from graphrt import dtypes
from graphrt.backends.cpu import attention_layout as at
from graphrt.backends.cpu.args import claim, share, size, stride
from graphrt.backends.cpu.attention_cells import ALL, HIDDEN, NONE, ONE, ZERO, look, prefetch, row_of, tile_filler
from graphrt.backends.cpu.attention_layout import (
    CELLS,
    FEW_PITCH,
    FEW_ROWS,
    groups_of,
    parts_of,
    rows_of_head,
    setting,
)
from graphrt.backends.cpu.attention_results import clearer, shared_result
from graphrt.backends.cpu.attention_steps import row_loader, score_capper
from graphrt.backends.cpu.attention_tile import dot_tile, dot_turned_tile, mix_tile
from graphrt.backends.cpu.attention_turns import begin_turning, lines_aimer, set_aim, tile_turner
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.jit import Kernel
from graphrt.backends.cpu.memory import load_f32, load_integer, load_one, store_f32, store_one
from graphrt.backends.cpu.simd import lane, maximum, reduce_add, reduce_max, splat
from graphrt.backends.cpu.vector_math import exp

GULP = 4  # cells scored together


@helper
def prefetch_rows(source, pitch, nbytes):
    """Ask for a gulp's rows in the next chunk, of which the processor foresees only those of the first kv head."""
    for c in range(GULP):
        for i in range(0, nbytes, 64):
            prefetch(source + c * pitch + i)


def dotter(lanes, dtype, mode, rows, columns):
    """A helper: scores of a few rows of q with a few keys of a DIRECT dtype, which turn unless mode is ""."""

    @helper
    def dot(args, q, k, k_pitch, width, turns, scores):
        pitch, first, pairs = setting(args, at.KEY_PITCH), setting(args, at.FIRST), setting(args, at.PAIRS)
        y, step = FEW_PITCH, setting(args, at.TURN_BYTES)
        if mode:
            dot_turned_tile(
                q, pitch, k, k_pitch, width, first, pairs, turns, step, scores, y, dtype, lanes, rows, columns, mode
            )
        else:
            dot_tile(q, pitch, k, k_pitch, width, scores, y, dtype, lanes, rows, columns)

    return dot


def scorer(lanes, dtype, mode):
    """A helper: scores of rows of q with keys of a DIRECT dtype, `key_pitch` bytes apart, which turn as in dotter."""
    dot_4, dot_2, dot_1 = (dotter(lanes, dtype, mode, rows, GULP) for rows in (4, 2, 1))
    dot_one = dotter(lanes, dtype, mode, 1, 1)

    @helper
    def score(args, lines, rows, keys, key_pitch, width, turns, cells, scores):
        pitch, turn_bytes = setting(args, at.KEY_PITCH), setting(args, at.TURN_BYTES)
        r = 0
        while r < rows:
            q, target = lines + r * pitch, scores + r * FEW_PITCH
            for c in range(0, cells, GULP):
                k, turn, s = keys + c * key_pitch, turns + c * turn_bytes, target + 4 * c
                if r == 0:
                    prefetch_rows(k + CELLS * key_pitch, key_pitch, setting(args, at.K_BYTES))
                if c + GULP > cells:
                    for i in range(c, cells):
                        key, turn = keys + i * key_pitch, turns + i * turn_bytes
                        for j in range(r, min(r + 4, rows)):
                            place = scores + j * FEW_PITCH + 4 * i
                            dot_one(args, lines + j * pitch, key, key_pitch, width, turn, place)
                elif r + 4 <= rows:
                    dot_4(args, q, k, key_pitch, width, turn, s)
                elif r + 2 <= rows:
                    dot_2(args, q, k, key_pitch, width, turn, s)
                else:
                    dot_1(args, q, k, key_pitch, width, turn, s)
            r += 4 if r + 4 <= rows else (2 if r + 2 <= rows else 1)

    return score


def mixer(lanes, vectors, dtype, directly):
    """A helper: totals += powers · values, the values of a DIRECT dtype, `pitch` bytes apart, stripe by stripe.

    Those read directly are asked for a chunk ahead.
    """
    stripe, nbytes = lanes * vectors, dtypes.get(dtype).row_bytes(lanes * vectors)

    @helper
    def mix(args, values, pitch, scores, rows, cells, totals, width):
        total_pitch, r = setting(args, at.VALUE_PITCH), 0
        while r < rows:
            x, ahead = scores + r * FEW_PITCH, CELLS * pitch if directly and r == 0 else 0
            for i in range(0, width, stripe):
                v, t = values + i // stripe * nbytes, totals + r * total_pitch + 4 * i
                if r + 4 <= rows:
                    mix_tile(v, pitch, ahead, x, FEW_PITCH, cells, t, total_pitch, dtype, lanes, vectors, 4)
                elif r + 2 <= rows:
                    mix_tile(v, pitch, ahead, x, FEW_PITCH, cells, t, total_pitch, dtype, lanes, vectors, 2)
                else:
                    mix_tile(v, pitch, ahead, x, FEW_PITCH, cells, t, total_pitch, dtype, lanes, vectors, 1)
            r += 4 if r + 4 <= rows else (2 if r + 2 <= rows else 1)

    return mix


def updater(lanes):
    """A helper: turn one row's scores into powers, and bring its highest score, its sum and its totals up to date."""

    @helper
    def update(args, result, r, scores, cells):
        for c in range(cells, cells + lanes):
            store_one(scores + 4 * c, "f32", HIDDEN)
        before = load_one(result + 4 * r, "f32")
        top = splat(before, lanes)
        for c in range(0, cells, lanes):
            top = maximum(top, load_f32(scores + 4 * c, "f32", lanes))
        highest = reduce_max(top)
        base = ZERO if highest == HIDDEN else highest
        added = splat(ZERO, lanes)
        for c in range(0, cells, lanes):
            power = exp(load_f32(scores + 4 * c, "f32", lanes) - base)
            store_f32(scores + 4 * c, "f32", power)
            added = added + power
        factor = lane(exp(splat(before - base, lanes)), 0)
        sum_at = result + setting(args, at.SUMS) + 4 * r
        store_one(result + 4 * r, "f32", highest)
        store_one(sum_at, "f32", load_one(sum_at, "f32") * factor + reduce_add(added))
        if factor != ONE:
            totals, pitch = result + setting(args, at.TOTALS), setting(args, at.VALUE_PITCH)
            for i in range(r * pitch, (r + 1) * pitch, 4 * lanes):
                store_f32(totals + i, "f32", load_f32(totals + i, "f32", lanes) * factor)

    return update


@helper
def hide(args, scratch, token, scores, cells):
    """Set one row's scores of cells that its token does not see to -inf."""
    flags = scratch + setting(args, at.SEEN) + CELLS + token
    for c in range(cells):
        if load_integer(flags + c * FEW_ROWS, "i8") == 0:
            store_one(scores + 4 * c, "f32", HIDDEN)


def head_attender(lanes, vectors, key_dtype, value_dtype, mode, whole):
    """A helper: let the rows of one kv head attend to one chunk; turns of keys as lines_aimer gives them."""
    fill, cap, update, turn = tile_filler(lanes), score_capper(lanes), updater(lanes), tile_turner(lanes, mode, whole)
    score, score_turned = (scorer(lanes, key_dtype or "f32", each) for each in ("", mode))
    mix, mix_directly = mixer(lanes, vectors, "f32", False), mixer(lanes, vectors, value_dtype or "f32", True)

    @helper
    def attend_head(args, scratch, result, kv_head, first_cell, cells, answer, lines, turns):
        rows, group, scores = rows_of_head(args), setting(args, at.GROUP), scratch + setting(args, at.SCORES)
        lines += kv_head * rows * setting(args, at.KEY_PITCH)
        if key_dtype:
            keys, key_pitch = row_of(args, at.K, kv_head, first_cell), stride(args, at.K, 1)
            width = size(args, at.K, 3)
        else:
            fill(args, at.K, kv_head, first_cell, cells, scratch)
            keys, key_pitch = scratch + setting(args, at.KEYS), setting(args, at.KEY_PITCH)
            width = key_pitch // 4
        if mode and turns and not whole:
            turn(args, scratch, first_cell, cells, 0)
        if mode and turns and whole:
            score_turned(args, lines, rows, keys, key_pitch, width, turns, cells, scores)
        else:
            score(args, lines, rows, keys, key_pitch, width, 0, cells, scores)
        for r in range(rows):
            row = scores + r * FEW_PITCH
            if setting(args, at.SOFTCAP) != 0:
                cap(args, row, cells)
            if answer != ALL:
                hide(args, scratch, r // group, row, cells)
            update(args, result, r, row, cells)
        totals, width = result + setting(args, at.TOTALS), setting(args, at.VALUE_PITCH) // 4
        if value_dtype and answer == ALL:
            values, pitch = row_of(args, at.V, kv_head, first_cell), stride(args, at.V, 1)
            mix_directly(args, values, pitch, scores, rows, cells, totals, width)
            return
        if key_dtype or not setting(args, at.SHARED):
            fill(args, at.V, kv_head, first_cell, cells, scratch)
        values, pitch = scratch + setting(args, at.VALUES), setting(args, at.TILE_PITCH)
        mix(args, values, pitch, scores, rows, cells, totals, width)

    return attend_head


def attend_few(lanes: int, vectors: int, key_dtype: str, value_dtype: str, mode: str, whole: bool) -> Kernel:
    """Native: every run of kv heads, part by part; dtypes where rows are read directly, else ""; see Layout.turning."""
    attend_head = head_attender(lanes, vectors, key_dtype, value_dtype, mode, whole)
    load_row, clear, aim = row_loader(lanes), clearer(lanes), lines_aimer(lanes, mode, whole)

    def run(args, ith, nth):
        rows, kv_heads, cells = rows_of_head(args), size(args, at.K, 2), size(args, at.K, 1)
        tokens, pitch = size(args, at.Q, 1), setting(args, at.KEY_PITCH)
        groups = groups_of(kv_heads, cells, nth)
        parts = parts_of(groups, cells, nth)
        scratch = setting(args, at.WORKSPACE) + ith * setting(args, at.SCRATCH_BYTES)
        lines, seen = scratch + setting(args, at.LINES), scratch + setting(args, at.SEEN)
        if mode:
            begin_turning(args, scratch)
        item = claim(setting(args, at.COUNTER), 1)
        while item < groups * parts and rows > 0:
            part = item % parts
            first_head, last_head = share(kv_heads, item // parts, groups)
            for head in range(first_head, last_head):
                clear(args, shared_result(args, head, part, parts, nth))
                for r in range(rows):
                    load_row(args, head, r, rows, lines + (head * rows + r) * pitch)
            if mode:
                set_aim(args, scratch, 0)
            first, last = share((cells + CELLS - 1) // CELLS, part, parts)
            for chunk in range(first, last):
                count = min(CELLS, cells - chunk * CELLS)
                answer = look(args, 0, tokens, chunk * CELLS, count, seen)
                if answer != NONE:
                    queries, turns = lines, 0
                    if mode:
                        taken = (last_head - first_head) * rows
                        queries, turns = aim(args, scratch, first_head * rows, taken, chunk * CELLS, count)
                    for head in range(first_head, last_head):
                        result = shared_result(args, head, part, parts, nth)
                        attend_head(args, scratch, result, head, chunk * CELLS, count, answer, queries, turns)
            item = claim(setting(args, at.COUNTER), 1)

    return run
