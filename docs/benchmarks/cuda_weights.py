"""Random weights made on a device, for models that no file need hold."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np

from graphrt.backends.cuda.device import Device
from graphrt.backends.cuda.launch import Launch, Whole, bind
from graphrt.backends.cuda.units import Unit
from graphrt.dtypes import Array, DType
from graphrt.models.random_weights import RandomWeights

PIECE_BYTES = 64 << 20
THREADS, MOST_BLOCKS = 256, 8192

UNIT = Unit("cuda_weights", ["draw_blocks"], registers=32, folder=Path(__file__).parent)


class DeviceWeights(RandomWeights):
    """Draws matrices on a device, and brings them to the host, which keeps the experts where they stay there.

    Args:
        device: that draws.
        seed: equal seeds give equal weights.
    """

    def __init__(self, device: Device, seed: int = 0) -> None:
        super().__init__(seed)
        self._device, self._next_seed = device, seed
        self._address, self._keeps = device.allocate(PIECE_BYTES)
        self._piece = device.pinned(PIECE_BYTES)
        self._tiles_there = dict[int, tuple[int, object]]()
        device.load([UNIT.kernel("draw_blocks")])

    def matrix(self, shape: tuple[int, ...], dtype: DType) -> Iterator[Array]:
        """Pieces of a tensor [..., K], as flat arrays of blocks; each lasts until the next is asked for."""
        tile = self._tile(dtype, shape[-1])
        self._next_seed += 1
        blocks, at_once = prod(shape) // dtype.block, PIECE_BYTES // dtype.nbytes
        for first in range(0, blocks, at_once):
            count = min(at_once, blocks - first)
            self._draw(tile, first, count, dtype)
            piece = self._piece[: count * dtype.nbytes]
            self._device.download(self._address, piece)
            self._device.synchronize()
            yield piece.view(dtype.numpy)

    def _draw(self, tile: Array, first: int, count: int, dtype: DType) -> None:
        grid = min(MOST_BLOCKS, -(-count * dtype.nbytes // THREADS))
        arguments = [Whole(self._address), Whole(self._address_of(tile)), Whole(first), Whole(count)]
        arguments += [len(tile), dtype.nbytes, self._next_seed]
        launch = Launch(UNIT.kernel("draw_blocks"), [grid], [THREADS], arguments)
        replay, _ = self._device.prepare([bind(launch, {}, None)])
        replay()

    def _address_of(self, tile: Array) -> int:
        """Where a tile is on the device; brings it there the first time."""
        if id(tile) not in self._tiles_there:
            self._tiles_there[id(tile)] = self._device.allocate(tile.nbytes)
            self._device.upload(self._tiles_there[id(tile)][0], tile.view(np.uint8))
            self._device.synchronize()
        return self._tiles_there[id(tile)][0]
