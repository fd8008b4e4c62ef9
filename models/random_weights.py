"""Random weights of any dtype, at the speed of a copy: a small tile is drawn once and repeated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import prod, sqrt

import numpy as np

from graphrt import dtypes
from graphrt.dtypes import Array, DType

# Blocks of a tile: a prime number, so that rows of a matrix do not repeat in step with the tile.
TILE_BLOCKS = 65537
PLAIN_TILE_ELEMENTS = 1048573


@dataclass(frozen=True)
class BlockLayout:
    """Where a block-quantized dtype keeps its factors; all other bytes are drawn at random.

    Args:
        factor_at: byte of the f16 factor d.
        offset_at: byte of the f16 offset, or None.
        offset: the offset that centres the values at zero, in units of d.
        scales: bytes of the scales of parts of a block, and the value of each: all parts count alike.
    """

    factor_at: int
    offset_at: int | None = None
    offset: float = 0.0
    scales: tuple[slice, int] | None = None


# Source: ggml-common.h. K-quants subtract their offset, the older types add it.
LAYOUTS = {
    "q4_0": BlockLayout(0),
    "q4_1": BlockLayout(0, 2, -7.5),
    "q5_0": BlockLayout(0),
    "q5_1": BlockLayout(0, 2, -15.5),
    "q8_0": BlockLayout(0),
    "q2_k": BlockLayout(80, 82, 1.5, (slice(0, 16), 0xFF)),
    "q3_k": BlockLayout(108, scales=(slice(96, 108), 0xFF)),
    "q4_k": BlockLayout(0, 2, 7.5, (slice(4, 16), 0xFF)),
    "q5_k": BlockLayout(0, 2, 15.5, (slice(4, 16), 0xFF)),
    "q6_k": BlockLayout(208, scales=(slice(192, 208), 64)),
    "iq4_nl": BlockLayout(0),
    "iq4_xs": BlockLayout(0, scales=(slice(2, 8), 0xFF)),
}
MXFP4_EXPONENT_AT, MXFP4_BIAS = 0, 127


def random_blocks(dtype: DType, count: int, deviation: float, rng: np.random.Generator) -> Array:
    """`count` blocks of a dtype, [count], whose values have zero mean and the standard deviation given."""
    if not dtype.is_quantized:
        return dtypes.from_f32(rng.standard_normal(count, np.float32) * np.float32(deviation), dtype)
    raw = rng.integers(0, 256, (count, dtype.nbytes), np.uint8)
    ratio = deviation / _unit_deviation(dtype)
    if dtype is dtypes.mxfp4:
        raw[:, MXFP4_EXPONENT_AT] = MXFP4_BIAS + round(np.log2(ratio))
    else:
        # Factors of either sign: types whose codes are not symmetric about zero then are on average.
        factors = ratio * rng.uniform(0.8, 1.2, count) * rng.choice([-1.0, 1.0], count)
        _set_factors(raw, LAYOUTS[dtype.name], factors.astype(np.float16))
    return raw.reshape(-1).view(dtype.numpy)


@cache
def _unit_deviation(dtype: DType) -> float:
    """The root mean square of random blocks whose factor is 1: their deviation once the factor may be negative."""
    raw = np.random.default_rng(0).integers(0, 256, (256, dtype.nbytes), np.uint8)
    if dtype is dtypes.mxfp4:
        raw[:, MXFP4_EXPONENT_AT] = MXFP4_BIAS
    else:
        _set_factors(raw, LAYOUTS[dtype.name], np.ones(256, np.float16))
    values = dtypes.to_f32(raw.reshape(-1).view(dtype.numpy))
    return float(np.sqrt(np.mean(values * values)))


def _set_factors(raw: Array, layout: BlockLayout, factors: Array) -> None:
    at = layout.factor_at
    raw[:, at : at + 2] = factors[:, None].view(np.uint8)
    if layout.offset_at is not None:
        offsets = (factors * np.float16(layout.offset))[:, None]
        raw[:, layout.offset_at : layout.offset_at + 2] = offsets.view(np.uint8)
    if layout.scales is not None:
        where, value = layout.scales
        raw[:, where] = value


class RandomWeights:
    """Draws matrices that keep the size of what they multiply: deviation 1 / sqrt(row length).

    Args:
        seed: equal seeds give equal weights.
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._tiles: dict[tuple[DType, int], Array] = {}

    def matrix(self, shape: tuple[int, ...], dtype: DType) -> Iterator[Array]:
        """Pieces of a tensor [..., K], as flat arrays of blocks."""
        tile = self._tile(dtype, shape[-1])
        left = prod(shape) // dtype.block
        start = int(self._rng.integers(len(tile)))
        while left:
            piece = tile[start : start + left]
            yield piece
            left -= len(piece)
            start = 0

    def vector(self, shape: tuple[int, ...], mean: float, deviation: float) -> Array:
        """A small f32 tensor drawn as a whole."""
        return (mean + deviation * self._rng.standard_normal(shape, np.float32)).astype(np.float32)

    def _tile(self, dtype: DType, columns: int) -> Array:
        if (dtype, columns) not in self._tiles:
            count = TILE_BLOCKS if dtype.is_quantized else PLAIN_TILE_ELEMENTS
            self._tiles[dtype, columns] = random_blocks(dtype, count, 1 / sqrt(columns), self._rng)
        return self._tiles[dtype, columns]
