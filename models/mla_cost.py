"""Which way of multi-head latent attention is faster for a ubatch: operations and bytes over a machine's rates.

T tokens, N cells, H heads, r width of the latent, dn and dr width of a head's part without and with rotation, dv width
of its value. Over a cache of latents there are two ways, with these multiply-accumulates for each layer:

    absorb     T·H·r·(dn+dv) for queries and values,  and  T·N·H·(2r+dr) for scores and mixes of latents
    expand     N·H·r·(dn+dv) for keys and values,     and  T·N·H·(dn+dr+dv) for scores and mixes of values

At equal rates expanding wins from T = r·(dn+dv) / (2r-dn-dv) tokens on, 171 for DeepSeek's shapes, whatever N is. Rates
are not equal: kernels come up to speed with more rows, and quantized latents cost more to read. So rates are measured
(mla_rates.py), and times estimated from them.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from math import exp, inf, log
from typing import Literal

Way = Literal["absorb", "expand"]
NAMES: dict[Way, str] = {"absorb": "absorbed", "expand": "flashmla2"}  # of the variants that go these ways for prompts


@dataclass(frozen=True)
class Heads:
    """The shapes of the attention of one layer.

    Args:
        count: H.
        nope, rope: dn and dr.
        rank: r.
        value: dv.
    """

    count: int
    nope: int
    rope: int
    rank: int
    value: int

    def products(self, rows: int) -> float:
        """Operations of `rows` tokens, or cells, through Wk and Wv of all heads."""
        return 2.0 * rows * self.count * self.rank * (self.nope + self.value)

    def attention(self, way: Way, pairs: float) -> float:
        """Operations of scores and mixes over so many pairs of a token and a cell that it sees."""
        width = 2 * self.rank + self.rope if way == "absorb" else self.nope + self.rope + self.value
        return 2.0 * pairs * self.count * width

    def flops(self, way: Way, tokens: int, cells: int) -> float:
        """All operations of one layer."""
        through = tokens if way == "absorb" else cells
        return self.products(through) + self.attention(way, seen(tokens, cells))

    @property
    def crossover(self) -> float:
        """Tokens from which on expanding takes fewer operations, if all see all cells; infinite where it never does."""
        saved = 2 * self.rank - self.nope - self.value
        return self.rank * (self.nope + self.value) / saved if saved > 0 else inf


def seen(tokens: int, cells: int) -> float:
    """Pairs of a token and a cell that it sees, where the tokens stand in the last of the cells."""
    return tokens * cells - min(tokens, cells) * (min(tokens, cells) - 1) / 2


@dataclass(frozen=True)
class Curve:
    """Operations per second by the number of rows that are worked on at a time, between measured points.

    Args:
        points: (rows, operations per second), rows rising; the ends hold beyond them.
    """

    points: tuple[tuple[float, float], ...]

    def at(self, rows: float) -> float:
        """Interpolated over the logarithms of both."""
        i = bisect_left(self.points, (rows,))
        if i == 0 or i == len(self.points):
            return self.points[min(i, len(self.points) - 1)][1]
        (low, before), (high, after) = self.points[i - 1], self.points[i]
        share = log(rows / low) / log(high / low)
        return exp((1 - share) * log(before) + share * log(after))

    @property
    def is_sound(self) -> bool:
        """Whether there are points, rows rise, and all numbers are above zero and finite."""
        rows = [row for row, _ in self.points]
        numbers = [number for point in self.points for number in point]
        return bool(rows) and rows == sorted(set(rows)) and all(0 < number < inf for number in numbers)

    @classmethod
    def flat(cls, rate: float) -> Curve:
        """The same rate at any number of rows."""
        return cls(((1.0, rate),))


@dataclass(frozen=True)
class Rates:
    """What a machine does.

    Args:
        absorb: operations per second of attention to latents, by T·H: one key/value head serves all.
        expand: of attention that expands all cells, by T.
        products: of tokens through Wk and Wv, by T.
        read: bytes per second of latents from memory.
        origin: where these numbers come from, in words.
    """

    absorb: Curve
    expand: Curve
    products: Curve
    read: float
    origin: str

    @property
    def is_sound(self) -> bool:
        """Whether all rates are numbers above zero, by rising rows."""
        curves = (self.absorb, self.expand, self.products)
        return self.read > 0 and all(curve.is_sound for curve in curves)

    @classmethod
    def of(cls, flops: float, read: float, origin: str) -> Rates:
        """The same rate for every kernel."""
        return cls(Curve.flat(flops), Curve.flat(flops), Curve.flat(flops), read, origin)


THEORY = Rates.of(1e11, inf, "equal rates")


@dataclass(frozen=True)
class CostModel:
    """Seconds of either way.

    Args:
        heads: shapes of the attention.
        cell_bytes: of a cell's latent and rotated part.
        rates: of the machine.
    """

    heads: Heads
    cell_bytes: float
    rates: Rates

    def seconds(self, way: Way, tokens: int, cells: int) -> float:
        """One layer's attention for so many tokens, which see so many cells."""
        heads, rates = self.heads, self.rates
        read = cells * self.cell_bytes / rates.read
        if way == "expand":
            return max(heads.flops("expand", tokens, cells) / rates.expand.at(tokens), read)
        attention = heads.attention("absorb", seen(tokens, cells)) / rates.absorb.at(tokens * heads.count)
        return max(attention, read) + heads.products(tokens) / rates.products.at(tokens)

    def faster(self, tokens: int, cells: int) -> Way:
        """The way that takes less time."""
        return "expand" if self.seconds("expand", tokens, cells) < self.seconds("absorb", tokens, cells) else "absorb"
