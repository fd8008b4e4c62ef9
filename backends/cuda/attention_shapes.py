"""How kernels of attention cut the work: which one serves which widths of keys and values, and what it needs."""

from __future__ import annotations

from dataclasses import dataclass

from graphrt.backends.cuda.hardware import present
from graphrt.backends.cuda.units import Unit

PROMPT = 128  # tokens from which on blocks take many rows, as these are likely to see the same cells
NATIVE = ("q4_0", "q8_0")  # dtypes that tiles are made of as they lie, besides their own

ROWS = Unit("attention_rows", ["attend_rows", "combine_parts"], registers=168)
WGMMA = Unit("attention_wgmma", ["attend_wgmma<f16>", "attend_wgmma<bf16>"], registers=168, architecture="90a")
WGMMA_ROWS, WGMMA_CELLS, WGMMA_THREADS = 64, 64, 384  # as in attention_wgmma.cu, and so are these:
WIDEST_KEY, WIDEST_VALUE = 576, 512
# Queries, two tiles, barriers; a multiple of the swizzle's pattern.
WGMMA_SHARED = 2 * WIDEST_KEY * (WGMMA_ROWS + 2 * WGMMA_CELLS) + 1024


@dataclass(frozen=True)
class Shape:
    """What blocks take.

    Args:
        unit, expression: of the kernel.
        dtype: of keys and values as the kernel wants them.
        rows, cells: of a block, and of a chunk of its cells.
        threads: of a block.
        shared: bytes of dynamic shared memory of a block.
        joined: whether values are the first elements of keys.
    """

    unit: Unit
    expression: str
    dtype: str
    rows: int
    cells: int
    threads: int
    shared: int
    joined: bool = False

    @property
    def at_once(self) -> int:
        """Blocks that the device runs at a time."""
        return present().processors * max(1, min(4, present().shared_bytes // (self.shared + 4096)))


@dataclass(frozen=True)
class Width:
    """Template arguments of attend_tiles for keys and values up to so many elements.

    Args:
        cells: of a tile; two tiles, the queries and the powers fit into 99 KiB where there are 16 rows.
        warps: of blocks of 64 rows.
        rows: that blocks may have.
        dtypes: that there are instances for; narrow keys in another dtype take those for wider ones.
    """

    keys: int
    values: int
    joined: bool
    cells: int
    warps: int
    rows: tuple[int, ...] = (16, 64)
    dtypes: tuple[str, ...] = ("f16", "bf16")

    def warps_for(self, rows: int) -> int:
        return self.warps if rows > 16 else 4

    def expression(self, dtype: str, rows: int) -> str:
        joined = str(self.joined).lower()
        arguments = [dtype, self.keys, self.values, joined, rows // 16, self.warps_for(rows), self.cells]
        return f"attend_tiles<{', '.join(map(str, arguments))}>"

    def shape(self, dtype: str, rows: int) -> Shape:
        warps = self.warps_for(rows)
        key, value, power = self.keys + 8, 0 if self.joined else self.values + 8, self.cells + 8
        exchanged = 1024 * warps if rows > 16 and self.cells == 4 * warps else 0  # EXCHANGED floats
        shared = 2 * (rows * key + 2 * self.cells * (key + value)) + max(2 * rows * power, exchanged)
        expression = self.expression(dtype, rows)
        return Shape(TILES, expression, dtype, rows, self.cells, 32 * warps, shared, self.joined)


WIDTHS = (
    Width(64, 64, False, 64, 4, dtypes=("f16",)),
    Width(128, 128, False, 64, 4),
    Width(192, 128, False, 32, 4, rows=(64,)),
    Width(576, 512, True, 32, 8),
)
TILES = Unit(
    "attention_tiles",
    [width.expression(dtype, rows) for width in WIDTHS for dtype in width.dtypes for rows in width.rows],
    registers=255,
)


def shape_for(tokens: int, group: int, keys: int, values: int, dtypes: set[str], joined: bool) -> Shape:
    """The shape for an attention.

    Args:
        group: query heads of each kv head.
        keys, values: elements of their rows.
        dtypes: of keys and values.
        joined: whether values are the first elements of keys.
    """
    dtype = "bf16" if dtypes & {"bf16", "mxfp4"} else "f16"  # f16 cannot hold all of these two
    rows = 16 if tokens * group <= 16 or (group <= 16 and tokens < PROMPT) else 64
    if rows > 16 and joined and "f32" not in dtypes and _is_for_wgmma(keys, values):
        sizes = {"rows": WGMMA_ROWS, "cells": WGMMA_CELLS, "threads": WGMMA_THREADS, "shared": WGMMA_SHARED}
        return Shape(WGMMA, f"attend_wgmma<{dtype}>", dtype, **sizes, joined=joined)
    for width in WIDTHS if "f32" not in dtypes else ():
        fits = keys <= width.keys and values <= width.values and (joined or not width.joined)
        if fits and dtype in width.dtypes:
            shapes = [width.shape(dtype, each) for each in (max(rows, min(width.rows)), min(width.rows))]
            return next((shape for shape in shapes if shape.shared <= present().shared_bytes), shapes[-1])
    return Shape(ROWS, "attend_rows", "f32", 8, 64, 128, 4 * 8 * (keys + values))


def _is_for_wgmma(keys: int, values: int) -> bool:
    """Whether attention_wgmma.cu can serve such rows, and they fill it: others have kernels for narrower ones."""
    narrower = max(width.keys for width in WIDTHS if not width.joined)
    return present().has_wgmma and narrower < keys <= WIDEST_KEY and values <= WIDEST_VALUE
