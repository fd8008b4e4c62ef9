"""Rows of float32 as words, and panels of them; a head's queries as panels, which a task prepares once."""

from __future__ import annotations

from functools import cache

from graphrt.backends.cpu import attention_layout as at
from graphrt.backends.cpu.args import address, size, stride
from graphrt.backends.cpu.attention_cells import ZERO, load_position, padded_rows, row_widener
from graphrt.backends.cpu.attention_layout import setting
from graphrt.backends.cpu.attention_steps import float_setting, scaled
from graphrt.backends.cpu.bf16 import pack
from graphrt.backends.cpu.elements import FLOAT32, element_bytes, gather, loop_one
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.memory import load_f32, store_f32
from graphrt.backends.cpu.mla_layout import (
    KEY_PANELS,
    LINE_PITCH,
    QUERY_BYTES,
    nope_width,
    rope_width,
)
from graphrt.backends.cpu.simd import splat
from graphrt.backends.cpu.tile import transpose_block
from graphrt.backends.cpu.transfer import call_with


@cache
def line_clearer(lanes):
    """A helper: fill a row of float32 with zeros."""

    @helper
    def clear(args, line):
        for i in range(0, setting(args, LINE_PITCH), 4 * lanes):
            store_f32(line + i, "f32", splat(ZERO, lanes))

    return clear


@cache
def row_expander(lanes):
    """A helper: a row of elements that lie side by side, as float32."""
    widen = row_widener(lanes)

    @helper
    def expand_row(source, step, kind, expand, count, line):
        if expand:
            call_with(expand, source, step, count, line)
        else:
            widen(line, source, kind, count)

    return expand_row


@cache
def row_packer(lanes, pairs):
    """A helper: a row of float32 as so many words at `target`, which may be the row itself."""

    @helper
    def pack_row(line, words, target):
        if pairs:
            for i in range(0, words, lanes):
                first, second = load_f32(line + 8 * i, "f32", lanes), load_f32(line + 8 * i + 4 * lanes, "f32", lanes)
                store_f32(target + 4 * i, "f32", pack(first, second))
        elif target != line:
            for i in range(0, words, lanes):
                store_f32(target + 4 * i, "f32", load_f32(line + 4 * i, "f32", lanes))

    return pack_row


@cache
def lines_transposer(lanes, vectors, pairs):
    """A helper: pack as many rows of float32 as a vector has lanes, and bring them to a panel from `panel` on."""
    pack_row, width = row_packer(lanes, pairs), lanes * vectors

    @helper
    def transpose_lines(args, lines, words, panel):
        pitch = setting(args, LINE_PITCH)
        for i in range(lanes):
            pack_row(lines + i * pitch, words, lines + i * pitch)
        for k in range(0, words, lanes):
            transpose_block(lines + 4 * k, pitch, panel + 4 * width * k, 4 * width, lanes)

    return transpose_lines


def query_loader(lanes, vectors):
    """A helper: a query, times scale: the part without rotation, filled up to whole panels, then the rotated part."""
    scale_row, clear, width = loop_one(lanes, scaled), line_clearer(lanes), lanes * vectors

    @helper
    def load_part(args, source, count, line):
        kind, step = setting(args, at.Q_KIND), stride(args, at.Q, 3)
        if step != element_bytes(kind):
            gather(line, source, kind, step, count)
            source, kind = line, FLOAT32
        scale_row(line, FLOAT32, source, kind, count, float_setting(args, at.SCALE), ZERO)

    @helper
    def load_query(args, head, token, line):
        clear(args, line)
        if token < size(args, at.Q, 1):
            source, nope = address(args, at.Q) + token * stride(args, at.Q, 1), nope_width(args)
            source += head * stride(args, at.Q, 2)
            load_part(args, source, nope, line)
            rotated = line + 4 * width * setting(args, KEY_PANELS)
            load_part(args, source + nope * stride(args, at.Q, 3), rope_width(args), rotated)

    return load_query


def queries_loader(lanes, vectors, pairs):
    """A helper: bring a head's queries to panels [words, queries], and positions and sequences to POSITIONS."""
    load_query, transpose = query_loader(lanes, vectors), lines_transposer(lanes, vectors, pairs)
    width = lanes * vectors

    @helper
    def load_queries(args, scratch, head):
        lines, nbytes = scratch + setting(args, at.LINES), setting(args, QUERY_BYTES)
        for token in range(0, padded_rows(args), lanes):
            for i in range(lanes):
                load_query(args, head, token + i, lines + i * setting(args, LINE_PITCH))
                load_position(args, scratch, token + i, token + i)
            panel = scratch + setting(args, at.PANELS) + token // width * nbytes
            transpose(args, lines, nbytes // (4 * width), panel + token % width * 4)

    return load_queries
