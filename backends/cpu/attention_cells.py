"""Attention's view of the cells: which a block of queries sees, and their keys or values as a tile of float32."""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import intrinsic

from graphrt import dtypes
from graphrt.backends.cpu import attention_layout as at
from graphrt.backends.cpu.args import address, size, stride
from graphrt.backends.cpu.attention_layout import CELLS, ROWS, setting
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
from graphrt.backends.cpu.simd import splat
from graphrt.backends.cpu.transfer import call_with

NONE, SOME, ALL = 0, 1, 2
HALF, BRAIN = dtypes.f16.gguf, dtypes.bf16.gguf
AHEAD = 32  # rows
ZERO = np.float32(0)
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
def look(args, first_token, tokens, first_cell, cells, seen):
    """Which cells of a chunk are seen: NONE, SOME or ALL; unless NONE, byte by byte at `seen`.

    There byte c · ROWS + t tells whether token t sees cell c (not written for ALL); byte CELLS · ROWS + c, whether any
    token does.
    """
    answer = seen_at_a_glance(args, first_token, tokens, first_cell, cells)
    if answer != SOME:
        for c in range(cells):
            store_integer(seen + CELLS * ROWS + c, "i8", 1)
        return answer
    found = NONE
    for c in range(cells):
        position, sequences = position_of(args, at.CELL_POS, first_cell + c), sequences_of(args, first_cell + c)
        by_any = 0
        for t in range(tokens):
            flag = 1 if sees(args, first_token + t, position, sequences) else 0
            store_integer(seen + c * ROWS + t, "i8", flag)
            by_any |= flag
        store_integer(seen + CELLS * ROWS + c, "i8", by_any)
        found |= by_any
    return found


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


def tile_filler(lanes):
    """A helper: expand the keys or values of a chunk to rows of float32; cells that nobody sees become zeros.

    A cell that is seen by nobody may hold anything, NaN too, and 0 · NaN would spoil the sums. Rows end in zeros.
    """
    widen = row_widener(lanes)

    @helper
    def fill(args, tensor, kv_head, first_cell, cells, scratch):
        keys, seen = tensor == at.K, scratch + setting(args, at.SEEN) + CELLS * ROWS
        target = scratch + setting(args, at.KEYS if keys else at.VALUES)
        pitch = setting(args, at.KEY_PITCH if keys else at.TILE_PITCH)
        kind = setting(args, at.K_KIND if keys else at.V_KIND)
        expand = setting(args, at.K_EXPAND if keys else at.V_EXPAND)
        row_bytes, width = setting(args, at.K_BYTES if keys else at.V_BYTES), size(args, tensor, 3)
        row = address(args, tensor) + kv_head * stride(args, tensor, 2)
        for c in range(cells):
            source, line = row + (first_cell + c) * stride(args, tensor, 1), target + c * pitch
            # Rows of one head are far apart, so the processor does not foresee them.
            ahead = source + AHEAD * stride(args, tensor, 1)
            for i in range(0, row_bytes, 64):
                prefetch(ahead + i)
            if load_integer(seen + c, "i8") == 0:
                for i in range(0, pitch, 4 * lanes):
                    store_f32(line + i, "f32", splat(ZERO, lanes))
                continue
            if expand:
                call_with(expand, source, stride(args, tensor, 3), width, line)
            else:
                widen(line, source, kind, width)
            for i in range(4 * width, pitch, 4):
                store_one(line + i, "f32", ZERO)

    return fill
