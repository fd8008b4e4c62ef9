"""The choice of mla=auto: for each layer and ubatch the way that the cost model estimates as faster, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from graphrt.dtypes import DType
from graphrt.models.mla_cost import NAMES, THEORY, CostModel, Heads, Rates, Way
from graphrt.models.mla_expansion import LatentExpansion

CLEAR = 4.0  # times as many operations: no kernel is so much slower for each, so nothing needs to be measured


@dataclass(frozen=True)
class Kind:
    """What the rates of attention depend on, beside the machine.

    Args:
        heads: the shapes.
        cache: dtype of the latents.
        keys, values: dtypes of Wk and Wv.
        keys_transposed: the file holds Wkᵀ.
    """

    heads: Heads
    cache: DType
    keys: DType
    values: DType
    keys_transposed: bool

    @classmethod
    def of(cls, heads: Heads, expansion: LatentExpansion, cache: DType) -> Kind:
        """The kind of a layer's attention over a cache."""
        return cls(heads, cache, expansion.keys.dtype, expansion.values.dtype, expansion.keys_transposed)

    def __str__(self) -> str:
        heads, order = self.heads, "transposed " if self.keys_transposed else ""
        shape = f"{heads.count} heads of {heads.nope}+{heads.rope}/{heads.value}"
        return f"{shape} over {heads.rank} in {self.cache}, by {order}{self.keys} and {self.values}"


RateSource = Callable[[int, Kind, bool], Rates]
"""Tells the rates of one kind of attention where a layer, given by its number, runs; whether it may measure them."""


def equal_rates(layer: int, kind: Kind, measure: bool) -> Rates:
    """Of a machine that nothing is known of."""
    return THEORY


@dataclass(frozen=True)
class Choice:
    """A way to go, and a line that says why."""

    way: Way
    reason: str


@dataclass(frozen=True)
class Chooser:
    """Chooses for all layers of a model.

    Args:
        heads: shapes of the attention.
        rates: tells the rates of a layer's machine; asked where operations alone do not decide.
    """

    heads: Heads
    rates: RateSource = equal_rates

    def choose(self, layer: int, expansion: LatentExpansion, cache: DType, tokens: int, cells: int) -> Choice:
        """The faster way for so many tokens that see so many cells of that dtype."""
        absorb, expand = (self.heads.flops(way, tokens, cells) for way in ("absorb", "expand"))
        about = f"for {tokens} token{'' if tokens == 1 else 's'} x {cells} cells"
        if max(absorb, expand) >= CLEAR * min(absorb, expand):
            way: Way = "absorb" if absorb < expand else "expand"
            times = max(absorb, expand) / min(absorb, expand)
            return Choice(way, f"mla auto: {NAMES[way]} {about}: {times:.3g} times fewer operations")
        model = self.model(layer, expansion, cache)
        way = model.faster(tokens, cells)
        other: Way = "absorb" if way == "expand" else "expand"
        took, instead = (_milliseconds(model.seconds(each, tokens, cells)) for each in (way, other))
        return Choice(
            way, f"mla auto: {NAMES[way]} {about}: {took} a layer, {NAMES[other]} {instead} ({model.rates.origin})"
        )

    def model(self, layer: int, expansion: LatentExpansion, cache: DType) -> CostModel:
        """The cost model of a layer, with the rates of its machine."""
        is_there = expansion.keys.root.data is not None  # else a model is planned that nobody runs here
        rates = self.rates(layer, Kind.of(self.heads, expansion, cache), is_there)
        return CostModel(self.heads, cache.row_bytes(self.heads.rank + self.heads.rope), rates)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
