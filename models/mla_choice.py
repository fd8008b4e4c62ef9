"""The choice of mla=auto: for each layer and ubatch the way that the cost model estimates as faster, and why."""

from __future__ import annotations

from dataclasses import dataclass
from math import log2
from typing import Protocol

from graphrt.dtypes import DType
from graphrt.models.mla_cost import NAMES, THEORY, CostModel, Heads, Rates, Way
from graphrt.models.mla_expansion import LatentExpansion

CLEAR = 4.0  # times as many operations: no kernel is so much slower for each, so nothing needs to be measured
CLOSE = 1.3  # estimates less apart than this are no better than a guess, so both ways are tried
TRIED = 2048  # tokens and cells at most in a trial; what it shows holds for more, too


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


class RateSource(Protocol):
    """Tells how fast one kind of attention is where a layer, given by its number, runs."""

    def __call__(self, layer: int, kind: Kind, measure: bool) -> Rates:
        """Its rates, and whether they may be measured for this."""

    def trial(self, layer: int, kind: Kind, tokens: int, cells: int) -> float | None:
        """Seconds of expanding over those of absorbing, after both were run; None where nothing can be run."""


class EqualRates:
    """Those of a machine that nothing is known of."""

    def __call__(self, layer: int, kind: Kind, measure: bool) -> Rates:
        return THEORY

    def trial(self, layer: int, kind: Kind, tokens: int, cells: int) -> float | None:
        return None


EQUAL_RATES = EqualRates()


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
    rates: RateSource = EQUAL_RATES

    def choose(self, layer: int, expansion: LatentExpansion, cache: DType, tokens: int, cells: int) -> Choice:
        """The faster way for so many tokens that see so many cells of that dtype."""
        absorb, expand = (self.heads.flops(way, tokens, cells) for way in ("absorb", "expand"))
        about = f"for {tokens} token{'' if tokens == 1 else 's'} x {cells} cells"
        if max(absorb, expand) >= CLEAR * min(absorb, expand):
            way: Way = "absorb" if absorb < expand else "expand"
            times = max(absorb, expand) / min(absorb, expand)
            return Choice(way, f"mla auto: {NAMES[way]} {about}: {times:.3g} times fewer operations")
        model = self.model(layer, expansion, cache)
        absorbing, expanding = (model.seconds(each, tokens, cells) for each in ("absorb", "expand"))
        origin = model.rates.origin
        if 1 / CLOSE < expanding / absorbing < CLOSE and _has_data(expansion):
            correction, tried = self._correction(layer, expansion, cache, model, tokens, cells)
            expanding, origin = expanding * correction, origin + tried
        way = "expand" if expanding < absorbing else "absorb"
        other: Way = "absorb" if way == "expand" else "expand"
        took, instead = (_milliseconds(choose(absorbing, expanding)) for choose in (min, max))
        return Choice(way, f"mla auto: {NAMES[way]} {about}: {took} a layer, {NAMES[other]} {instead} ({origin})")

    def _correction(
        self, layer: int, expansion: LatentExpansion, cache: DType, model: CostModel, tokens: int, cells: int
    ) -> tuple[float, str]:
        """What a trial near these sizes shows the estimate of expanding to be wrong by, and words for it."""
        tokens, cells = _near(tokens), max(_near(tokens), _near(cells))
        lead = self.rates.trial(layer, Kind.of(self.heads, expansion, cache), tokens, cells)
        if lead is None:
            return 1.0, ""
        estimate = model.seconds("expand", tokens, cells) / model.seconds("absorb", tokens, cells)
        return lead / estimate, f", and tried for {tokens} x {cells}"

    def model(self, layer: int, expansion: LatentExpansion, cache: DType) -> CostModel:
        """The cost model of a layer, with the rates of its machine."""
        rates = self.rates(layer, Kind.of(self.heads, expansion, cache), _has_data(expansion))
        return CostModel(self.heads, cache.row_bytes(self.heads.rank + self.heads.rope), rates)


def _has_data(expansion: LatentExpansion) -> bool:
    """Whether the weights are there; else a model is planned that nobody runs here."""
    return expansion.keys.root.data is not None


def _near(count: int) -> int:
    """The nearest power of two, so that a few trials serve all sizes."""
    return int(min(TRIED, 1 << round(log2(count))))


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
