"""Where a thread's scratch memory holds what during attention, and all that its kernels are called with."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from graphrt.backends.cpu import host
from graphrt.backends.cpu.attention_layout import (
    CELLS,
    FEW_PITCH,
    FEW_ROWS,
    KEY_FACTORS_STEP,
    LINE,
    SINKS,
    Layout,
    groups_of,
    parts_of,
    up,
)
from graphrt.backends.cpu.attention_rotation import turn_bytes, turner_bytes
from graphrt.backends.cpu.elements import kinds
from graphrt.backends.cpu.tile import tile
from graphrt.backends.cpu.transfer import expand_address
from graphrt.ops.rope import Rotation


@dataclass(frozen=True)
class Scratch(Layout):
    """The layout of a node with sizes and places in memory."""

    @property
    def result(self) -> list[int]:
        """A task's result: the highest logit of each row, at SUMS the sums, at TOTALS the mixed values; its size."""
        sums, totals = 4 * self.padded, 8 * self.padded
        return [sums, totals, up(totals + self._room(self.padded) * self.pitches[2], LINE)]

    def _room(self, rows: int) -> int:
        """Rows of a tile: products touch some past the end."""
        return rows + max(tile().columns, 16)

    @property
    def query_bytes(self) -> int:
        """Of a panel of queries."""
        return host.level().lanes * self.vectors * self.pitches[0] // (2 if self.integers else 1)

    @property
    def places(self) -> list[int]:
        """Where each part of the scratch memory begins, in the order of the scalars, and the size of the whole."""
        sizes = self._sizes_of_few if self.few else self._sizes_of_many
        places = [0, *accumulate(up(size, LINE) for size in sizes)]
        if self.shared and not self.integers:
            places[4] = places[3]
        return places

    @property
    def _sizes_of_few(self) -> list[int]:
        keys, values, _ = self.pitches
        lines = self.sources[1].shape[1] * self.rows * keys
        return [
            lines,
            0,
            0,
            self._room(CELLS) * keys,
            0 if self.shared else self._room(CELLS) * values,
            self.rows * FEW_PITCH,
            0,
            CELLS * (1 + FEW_ROWS),
            turner_bytes(self.pairs) if self.rope else 0,
            lines if self.rope else 0,
            CELLS * turn_bytes(self.pairs) if self.rope else 0,
            *[0] * 4,
        ]

    @property
    def _sizes_of_many(self) -> list[int]:
        keys, tile_pitch, values = self.pitches
        parts = -(-keys // (4 * self.part_width))
        lanes, cells = host.level().lanes, self._room(CELLS)
        width = lanes * self.vectors
        stripes = values // (4 * tile().rows)
        by_row = 0 if self.shared else cells * tile_pitch
        return [
            max(lanes * keys, 2 * values),
            self.padded // width * self.query_bytes,
            3 * 4 * self.padded,
            cells * self.key_row,
            stripes * self.panel_bytes + 4 * tile().rows if self.integers else by_row,
            4 * width * (cells + 1),
            4 * (2 * width + self._room(0)),
            CELLS,
            turner_bytes(self.pairs) if self.rope else 0,
            0,
            0,
            self.result[-1],
            4 * self.padded * parts,
            KEY_FACTORS_STEP * parts,
            4 * cells,
        ]

    @property
    def scalars(self) -> list[float]:
        """What the kernels are called with, in the order of the names above."""
        q, k, v = self.sources
        params, sinks, rope = self.node.params, self.node.srcs[SINKS - 1], self.rope or Rotation()
        return [
            float(params["scale"]),
            float(params["softcap"]),
            params["window"],
            *kinds([q, k, v, sinks]),
            expand_address(k.dtype),
            expand_address(v.dtype),
            *(each.dtype.row_bytes(each.shape[2]) for each in (k, v)),
            self.shared,
            self.group,
            self.block,
            *self.pitches,
            self.panel_bytes,
            *self.result,
            rope.first,
            self.pairs,
            turn_bytes(self.pairs),
            float(rope.magnitude),
            self.key_row,
            self.part_width,
            self.query_bytes,
            *self.places,
        ]

    @property
    def extras(self) -> list[int]:
        """The speeds of the pairs, as the bits of float64."""
        rope, row = self.rope, self.sources[1].shape[2]
        return [] if rope is None else [int(bits) for bits in rope.speeds(row).view(np.int64)]

    def workspace(self, threads: int) -> int:
        """Bytes of every thread's scratch memory and of the results that threads share."""
        _, k, _ = self.sources
        tasks = groups_of(k.shape[1], k.shape[0], threads) if self.few else self.blocks
        parts = parts_of(tasks, k.shape[0], threads)
        shared = self.blocks * parts if self.few or parts > 1 else 0
        return threads * self.places[-1] + shared * self.result[-1]
