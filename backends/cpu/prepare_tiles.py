"""The second operand of a product with many columns as tiles: words of the columns of one group, a few side by side.

A word is a float32, or two neighbours of a row in bfloat16 (see bf16.py). Rows are turned into columns in registers.
"""

from __future__ import annotations

from graphrt.backends.cpu import bf16
from graphrt.backends.cpu.args import claim, row_address, stride, word
from graphrt.backends.cpu.grouping import (
    COUNTER,
    FIRST,
    FIRST_TILE,
    LAST,
    SLICE_FIRST,
    SLICE_LAST,
    X_ROW,
    X,
    column_word,
    group_of_tile,
    group_word,
    prepared,
    scratch,
    tile_count,
)
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.jit import Kernel
from graphrt.backends.cpu.memory import load_f32, store_f32, store_f32_first
from graphrt.backends.cpu.prepare import PIECE, piece_expander
from graphrt.backends.cpu.tile import transpose_block


def lanes_of(columns: int) -> int:
    """Columns that are turned at a time, all those of a tile."""
    return 8 if columns <= 8 else 16


def scratch_bytes(columns: int) -> int:
    """Scratch memory of a thread: a piece of a row, of every column, and what a block of them becomes."""
    lanes = lanes_of(columns)
    return 4 * PIECE * (1 + lanes) + 4 * lanes * lanes


def prepare_tiles(columns: int, dtype: str, pairs: bool) -> Kernel:
    """Native: write a slice of x as tiles of `columns` columns, nothing past a group's end; the tables must be there.

    Args: columns: of a tile, 16 at most; dtype: of x; pairs: whether words are pairs of bfloat16, else float32.
    """
    piece, lanes, per_word = piece_expander(dtype), lanes_of(columns), 2 if pairs else 1
    line_bytes = 4 * PIECE // per_word
    lines_at = 4 * PIECE
    turned_at = lines_at + lanes * 4 * PIECE

    @helper
    def write_line(source, line):
        """A piece as words."""
        for i in range(0, PIECE, per_word * lanes):
            v = load_f32(source + 4 * i, "f32", lanes)
            if pairs:
                v = bf16.pack(v, load_f32(source + 4 * (i + lanes), "f32", lanes))
            store_f32(line + 4 * i // per_word, "f32", v)

    @helper
    def turn_lines(lines, words, turned, target, count):
        """The first words of `count` lines, one after the other, to rows of `target`."""
        for k in range(0, words, lanes):
            transpose_block(lines + 4 * k, line_bytes, turned, 4 * lanes, lanes)
            for i in range(min(lanes, words - k)):
                v = load_f32(turned + 4 * lanes * i, "f32", lanes)
                store_f32_first(target + (k + i) * columns * 4, "f32", v, count)

    def run(args, ith, nth):
        first_element, last_element = word(args, SLICE_FIRST), word(args, SLICE_LAST)
        depth = (last_element - first_element + per_word - 1) // per_word  # in words
        buffer = scratch(args, ith)
        lines, turned = buffer + lines_at, buffer + turned_at
        item = claim(word(args, COUNTER), 1)
        while item < tile_count(args):
            group = group_of_tile(args, item)
            first = group_word(args, group, FIRST) + (item - group_word(args, group, FIRST_TILE)) * columns
            count = min(columns, group_word(args, group, LAST) - first)
            target = prepared(args) + item * depth * columns * 4
            for start in range(first_element, last_element, PIECE):
                elements = min(PIECE, last_element - start)
                for c in range(count):
                    row = row_address(args, X, column_word(args, first + c, X_ROW))
                    write_line(piece(row, stride(args, X, 3), start, elements, buffer), lines + c * line_bytes)
                place = target + (start - first_element) // per_word * columns * 4
                turn_lines(lines, (elements + per_word - 1) // per_word, turned, place, count)
            item = claim(word(args, COUNTER), 1)

    return run
