"""Where the bytes of interleaved rows stand: ROWS rows of a quantized matrix side by side, so that a vector meets all.

Block after block of the rows is kept together: first the bytes that stand before a block's words (a scale of f16, in
most dtypes), of one row after the other; then the first word of four bytes of each row, the second word of each, and so
on; then the bytes that words leave over. No byte is added, and rows of a multiple of ROWS begin where they did.

ik_llama.cpp knows such dtypes too and calls them q4_0_r8; ours have 16 rows: q4_0_r16.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Bytes = np.ndarray[Any, np.dtype[Any]]

ROWS = 16
# Bytes of a block that stand before its words, where it is no whole number of words and those left over are the first.
_HEADS = {"q4_0": 2, "q5_0": 2, "q8_0": 2, "iq4_nl": 2, "mxfp4": 1}


def words_of_block(name: str, nbytes: int) -> tuple[int, int]:
    """The first byte of a block that belongs to a word, and one past the last.

    Args:
        name, nbytes: of a block-quantized dtype whose rows are not interleaved.
    """
    head = _HEADS.get(name, 0)
    return head, head + (nbytes - head) // 4 * 4


def move(blocks: Bytes, target: np.dtype[Any], words: tuple[int, int], *, apart: bool) -> Bytes:
    """Rows of blocks as an array of dtype `target`, with their bytes where interleaved rows have them.

    Args:
        blocks: [..., M, K / block], M a multiple of ROWS.
        words: of a block, see `words_of_block`.
        apart: whether the rows are to be interleaved; they are brought back otherwise.
    """
    result = np.empty(blocks.shape, target)
    if blocks.size == 0:
        return result
    per_row, nbytes = blocks.shape[-1], target.itemsize
    source, made = np.ascontiguousarray(blocks).view(np.uint8), result.view(np.uint8)
    by_row, by_block = (source, made) if apart else (made, source)
    by_row = by_row.reshape(-1, ROWS, per_row, nbytes).swapaxes(1, 2)
    by_block = by_block.reshape(-1, per_row, ROWS * nbytes)
    first, last = words
    for start, stop, size in ((0, first, first), (first, last, 4), (last, nbytes, nbytes - last)):
        if start == stop:
            continue
        pieces = by_row[..., start:stop].view(f"V{size}")  # [groups of rows, blocks, ROWS, pieces]
        side_by_side = by_block[..., ROWS * start : ROWS * stop].view(f"V{size}")
        side_by_side = side_by_side.reshape(*pieces.shape[:2], -1, ROWS).swapaxes(2, 3)
        np.copyto(*((side_by_side, pieces) if apart else (pieces, side_by_side)))
    return result
