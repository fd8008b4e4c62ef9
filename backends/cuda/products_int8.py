"""Launches of mmq.cu, which makes products of quantized weights in narrow tiles, in int8, in gemm.cu's place."""

from __future__ import annotations

from collections.abc import Sequence

from graphrt.backends.cuda.blocks import QUANTIZED
from graphrt.backends.cuda.launch import Argument, Launch
from graphrt.backends.cuda.operands import pieces_of_row
from graphrt.backends.cuda.units import Unit

ROWS, COLUMNS, THREADS = 64, 64, 128  # of w and of x in a tile, and of a block, as in mmq.cu
PAIR_BYTES, PAIRS = COLUMNS * 2 * (32 + 8), 4  # of steps of x in shared memory, likewise
BLOCKS_PER_PROCESSOR = 4

UNIT = Unit("mmq", [f"mmq<{name}>" for name in QUANTIZED], registers=128)


def launch(dtype: str, grid: Sequence[int], arguments: Sequence[Argument], note: str) -> Launch:
    """The launch in gemm.cu's place, whose arguments it has but for x."""
    shared = PAIRS * PAIR_BYTES + 2 * ROWS * pieces_of_row(dtype) * 16
    return Launch(UNIT.kernel(f"mmq<{dtype}>"), grid, [THREADS], arguments, shared, note)
