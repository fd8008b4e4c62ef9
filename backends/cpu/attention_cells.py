"""Attention's view of the cells: which a block of queries sees, and their keys or values as a tile of float32."""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import types
from numba.extending import intrinsic

from graphrt import dtypes
from graphrt.backends.cpu import attention_layout as at
from graphrt.backends.cpu.args import address, size, stride
from graphrt.backends.cpu.attention_layout import CELLS, FEW_ROWS, setting
from graphrt.backends.cpu.dot import load_i32
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.memory import (
    emit_prefetch,
    load_f32,
    load_f32_first,
    load_integer,
    store_f32,
    store_f32_first,
    store_integer,
    store_one,
)
from graphrt.backends.cpu.simd import maximum, reduce_max, select, splat
from graphrt.backends.cpu.transfer import call_with

NONE, SOME, ALL = 0, 1, 2
HALF, BRAIN = dtypes.f16.gguf, dtypes.bf16.gguf
AHEAD = 32  # rows
ZERO, ONE, HIDDEN = np.float32(0), np.float32(1), np.float32(-np.inf)
LEAST, MOST = -(2**31), 2**31 - 1


@helper
def position_of(args, tensor, i):
    """Element i of q_pos, q_seq or cell_pos."""
    return load_integer(address(args, tensor) + i * stride(args, tensor, 3), "i32")


@helper
def sequences_of(args, cell):
    """The bits of the sequences that a cell belongs to."""
    return load_integer(address(args, at.CELL_SEQ) + cell * stride(args, at.CELL_SEQ, 3), "i64")


@helper
def sequence_bit(args, token):
    """The bit of a query's sequence."""
    return 1 << (position_of(args, at.Q_SEQ, token) & 63)


@helper
def sees(args, token, position, sequences):
    """Whether a query sees a cell of that position and those sequences."""
    distance = position_of(args, at.Q_POS, token) - position
    window = setting(args, at.WINDOW)
    near = distance >= 0 and (window == 0 or distance < window)
    return position >= 0 and near and (sequences & sequence_bit(args, token)) != 0


@helper
def seen_at_a_glance(args, first_token, tokens, first_cell, cells):
    """Whether the tokens see ALL of the cells or NONE, as far as their extremes tell; else SOME."""
    earliest, latest, wanted = MOST, LEAST, 0
    for token in range(first_token, first_token + tokens):
        position = position_of(args, at.Q_POS, token)
        earliest, latest = min(earliest, position), max(latest, position)
        wanted |= sequence_bit(args, token)
    lowest, highest, least, shared, any_of = MOST, LEAST, MOST, -1, 0
    for cell in range(first_cell, first_cell + cells):
        position = position_of(args, at.CELL_POS, cell)
        least = min(least, position)
        if position >= 0:
            sequences = sequences_of(args, cell)
            lowest, highest = min(lowest, position), max(highest, position)
            shared, any_of = shared & sequences, any_of | sequences
    window = setting(args, at.WINDOW)
    if highest < 0 or lowest > latest or (any_of & wanted) == 0 or (window and earliest - highest >= window):
        return NONE
    all_near = window == 0 or latest - lowest < window
    if least >= 0 and highest <= earliest and (shared & wanted) == wanted and all_near:
        return ALL
    return SOME


@helper
def rows_see(args, first_row, rows, first_cell, cells):
    """The same for rows of a kv head."""
    group = setting(args, at.GROUP)
    first, last = first_row // group, (first_row + rows - 1) // group
    return seen_at_a_glance(args, first, last - first + 1, first_cell, cells)


@helper
def look(args, first_token, tokens, first_cell, cells, seen):
    """Which cells of a chunk a few tokens see: NONE, SOME or ALL; unless NONE, byte by byte at `seen`.

    There byte c tells whether any token sees cell c; byte CELLS + c · FEW_ROWS + t, whether token t does (not written
    for ALL).
    """
    answer = seen_at_a_glance(args, first_token, tokens, first_cell, cells)
    if answer != SOME:
        for c in range(cells):
            store_integer(seen + c, "i8", 1)
        return answer
    found = NONE
    for c in range(cells):
        position, sequences = position_of(args, at.CELL_POS, first_cell + c), sequences_of(args, first_cell + c)
        by_any = 0
        for t in range(tokens):
            flag = 1 if sees(args, first_token + t, position, sequences) else 0
            store_integer(seen + CELLS + c * FEW_ROWS + t, "i8", flag)
            by_any |= flag
        store_integer(seen + c, "i8", by_any)
        found |= by_any
    return found


@helper
def padded_rows(args):
    """Rows of a block in whole panels."""
    return setting(args, at.SUMS) // 4


@helper
def load_position(args, scratch, row, token):
    """A row's position, and its sequence's bit in two words; rows past the last token see nothing."""
    rows, position, bit = 4 * padded_rows(args), LEAST, 0
    if token < size(args, at.Q, 1):
        position, bit = position_of(args, at.Q_POS, token), sequence_bit(args, token)
    place = scratch + setting(args, at.POSITIONS) + 4 * row
    store_integer(place, "i32", position)
    store_integer(place + rows, "i32", bit)
    store_integer(place + 2 * rows, "i32", bit >> 32)


@cache
def viewer(lanes):
    """A helper: of two vectors with a lane for each row from `row` on, one where it sees a cell, else the other."""

    @helper
    def where_seen(args, scratch, row, cell, seen, unseen):
        place, rows = scratch + setting(args, at.POSITIONS) + 4 * row, 4 * padded_rows(args)
        position, sequences = position_of(args, at.CELL_POS, cell), sequences_of(args, cell)
        window = setting(args, at.WINDOW)
        if position < 0:
            return unseen
        low, high = splat(np.int32(sequences), lanes), splat(np.int32(sequences >> 32), lanes)
        shared = load_i32(place + rows, lanes) & low | load_i32(place + 2 * rows, lanes) & high
        earlier = select(load_i32(place, lanes) >= splat(np.int32(position), lanes), seen, unseen)
        if window != 0:
            last = splat(np.int32(min(position + window - 1, MOST)), lanes)
            earlier = select(load_i32(place, lanes) <= last, earlier, unseen)
        return select(shared == splat(np.int32(0), lanes), unseen, earlier)

    return where_seen


def cells_marker(lanes):
    """A helper: whether a block's rows see NONE, SOME or ALL cells of a chunk; unless NONE, which cells, at SEEN."""
    where_seen = viewer(lanes)

    @helper
    def mark_cells(args, scratch, first_row, rows, first_cell, cells):
        flags = scratch + setting(args, at.SEEN)
        answer = rows_see(args, first_row, rows, first_cell, cells)
        if answer != SOME:
            for c in range(cells):
                store_integer(flags + c, "i8", 1)
            return answer
        found = NONE
        for c in range(cells):
            by_any = splat(ZERO, lanes)
            for row in range(0, rows, lanes):
                seen = where_seen(args, scratch, row, first_cell + c, splat(ONE, lanes), splat(ZERO, lanes))
                by_any = maximum(by_any, seen)
            flag = 1 if reduce_max(by_any) > ZERO else 0
            store_integer(flags + c, "i8", flag)
            found |= flag
        return found

    return mark_cells


def score_hider(lanes, vectors):
    """A helper: set scores of cells that the rows of a panel, from `row` of the block on, do not see to -inf."""
    where_seen, width = viewer(lanes), lanes * vectors

    @helper
    def hide(args, scratch, row, first_cell, cells):
        for c in range(cells):
            for i in range(0, width, lanes):
                place = scratch + setting(args, at.SCORES) + 4 * (width * c + i)
                scores, hidden = load_f32(place, "f32", lanes), splat(HIDDEN, lanes)
                store_f32(place, "f32", where_seen(args, scratch, row + i, first_cell + c, scores, hidden))

    return hide


@intrinsic
def prefetch(typingctx, address):
    """Ask for the cache line at an address, which need not be valid."""

    def codegen(context, builder, signature, values):
        emit_prefetch(builder, values[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


def row_widener(lanes):
    """A helper: a row of a plain dtype as float32; a loop for each dtype, chosen once."""
    copy, from_half, from_brain = (dtype_widener(lanes, dtype) for dtype in ("f32", "f16", "bf16"))

    @helper
    def widen(target, source, kind, count):
        if kind == HALF:
            from_half(target, source, count)
        elif kind == BRAIN:
            from_brain(target, source, count)
        else:
            copy(target, source, count)

    return widen


def dtype_widener(lanes, dtype):
    """A helper: a row of one plain dtype as float32."""
    nbytes = dtypes.get(dtype).nbytes

    @helper
    def widen(target, source, count):
        whole = count - count % lanes
        for i in range(0, whole, lanes):
            store_f32(target + 4 * i, "f32", load_f32(source + nbytes * i, dtype, lanes))
        if whole < count:
            rest = load_f32_first(source + nbytes * whole, dtype, lanes, count - whole)
            store_f32_first(target + 4 * whole, "f32", rest, count - whole)

    return widen


@helper
def row_of(args, tensor, kv_head, cell):
    """Address of a cell's row of keys or values."""
    return address(args, tensor) + cell * stride(args, tensor, 1) + kv_head * stride(args, tensor, 2)


@helper
def prefetch_ahead(args, tensor, row):
    """Ask for a row some cells after one: rows of one head are far apart, so the processor does not foresee them."""
    ahead = row + AHEAD * stride(args, tensor, 1)
    for i in range(0, setting(args, at.K_BYTES if tensor == at.K else at.V_BYTES), 64):
        prefetch(ahead + i)


def row_filler(lanes):
    """A helper: expand a cell's row of keys or values to float32, with zeros up to `pitch` bytes.

    All become zeros where nobody sees the cell: it may hold anything, NaN too, and 0 · NaN would spoil the sums.
    """
    widen = row_widener(lanes)

    @helper
    def fill_row(args, tensor, kv_head, first_cell, c, scratch, line, pitch):
        keys, width, source = tensor == at.K, size(args, tensor, 3), row_of(args, tensor, kv_head, first_cell + c)
        prefetch_ahead(args, tensor, source)
        if load_integer(scratch + setting(args, at.SEEN) + c, "i8") == 0:
            for i in range(0, pitch, 4 * lanes):
                store_f32(line + i, "f32", splat(ZERO, lanes))
            return
        expand = setting(args, at.K_EXPAND if keys else at.V_EXPAND)
        if expand:
            call_with(expand, source, stride(args, tensor, 3), width, line)
        else:
            widen(line, source, setting(args, at.K_KIND if keys else at.V_KIND), width)
        for i in range(4 * width, pitch, 4):
            store_one(line + i, "f32", ZERO)

    return fill_row


def tile_filler(lanes):
    """A helper: the same for all cells of a chunk, which become the rows of a tile."""
    fill_row = row_filler(lanes)

    @helper
    def fill(args, tensor, kv_head, first_cell, cells, scratch):
        keys = tensor == at.K
        target = scratch + setting(args, at.KEYS if keys else at.VALUES)
        pitch = setting(args, at.KEY_PITCH if keys else at.TILE_PITCH)
        for c in range(cells):
            fill_row(args, tensor, kv_head, first_cell, c, scratch, target + c * pitch, pitch)

    return fill
