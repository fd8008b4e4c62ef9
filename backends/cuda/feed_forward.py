"""Feed-forward layers of quantized weights and few rows: a gated unit's products with it, experts with their sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphrt import dtypes, ops
from graphrt.backends.cuda.launch import Address, Argument, Launch, Whole
from graphrt.backends.cuda.products_few import (
    OFTEN,
    ROWS,
    WARPS,
    Codes,
    Prepared,
    codes_of,
    multiply,
    shared_bytes,
    split_of,
    steps_of,
    x_arguments,
)
from graphrt.backends.cuda.units import Unit
from graphrt.patterns import Coming
from graphrt.tensor import Tensor

ACTIVATIONS = (ops.swiglu, ops.geglu, ops.reglu)  # feed_forward.cu numbers them alike
GATED_WARPS, HIDDEN, MOST_USED = 8, 32, 32  # as in feed_forward.cu: h of a block, and experts of a token
SUMMED = (*OFTEN, "q5_0")  # what rows that are no whole blocks of 256 are mostly in, where others are in q4_k

UNIT = Unit("feed_forward", [*(f"gated<{w}>" for w in OFTEN), *(f"summed<{w}>" for w in SUMMED)])


@dataclass(frozen=True)
class Layer:
    """A feed-forward layer, or the experts of one.

    Args:
        gate, up: two products, or one whose result holds both halves.
        unit: the gated unit that alone reads them.
        down: the product that alone reads that.
        total: the weighted sum that alone reads the experts' results, if there is one that can run now.
    """

    gate: Tensor
    up: Tensor
    unit: Tensor
    down: Tensor
    total: Tensor | None

    @property
    def readers(self) -> list[Tensor]:
        """The nodes after the products of x."""
        return [self.unit, self.down, *([] if self.total is None else [self.total])]

    def hidden(self, base: int) -> Prepared:
        """Where the gated unit's results lie."""
        width = self.unit.shape[-1]
        return Prepared(self.unit.size // width, width, base)

    def gated(self, x: Prepared | Tensor, hidden: Prepared) -> Launch:
        """What puts the gated unit's results there."""
        gate, (up, *_) = codes_of(self.gate), self.up.srcs
        assert gate is not None
        assert self.unit.op is not None
        used: list[Argument] = [0, 0] if gate.ids is None else [gate.ids.shape[1], gate.x.shape[1]]
        first_of_up = Whole(hidden.width if self.up is self.gate else 0)
        kind = ACTIVATIONS.index(self.unit.op)
        ids = gate.w if gate.ids is None else gate.ids
        return Launch(
            UNIT.kernel(f"gated<{gate.w.dtype}>"),
            [hidden.rows, hidden.width // HIDDEN],
            [GATED_WARPS * 32],
            [gate.w, up, ids, *x_arguments(x, gate.w), *hidden.arguments, first_of_up, *used, kind],
            shared_bytes(GATED_WARPS, gate.w.dtype, x),
        )

    def last(self, hidden: Prepared) -> Launch:
        """What makes the layer's result of them."""
        down = codes_of(self.down)
        assert down is not None
        return multiply([down], hidden) if self.total is None else self._summed(down, hidden)

    def _summed(self, down: Codes, hidden: Prepared) -> Launch:
        assert self.total is not None
        assert down.ids is not None
        shares, (tokens, used) = self.total.srcs[1], down.ids.shape
        assert shares is not None
        groups = -(-self.total.shape[-1] // ROWS)
        split = split_of(tokens * groups, used * steps_of(hidden.width))
        steps = [Whole(step) for step in shares.strides[:2]]  # [T, U] or [T, U, 1]
        return Launch(
            UNIT.kernel(f"summed<{down.w.dtype}>"),
            [tokens, -(-groups * split // WARPS)],
            [WARPS * 32],
            [self.total, down.w, down.ids, Address(shares), *steps, *hidden.arguments, used, split],
            shared_bytes(WARPS, down.w.dtype, hidden),
        )


def layer_of(gate: Tensor, products: Sequence[Tensor], coming: Coming) -> Layer | None:
    """The layer that begins with a product as its gate."""
    unit = next((node for node in coming.after_first() if node.op in ACTIVATIONS and node.srcs[0] is gate), None)
    if unit is None:
        return None
    up = unit.srcs[1] or gate
    halves, found, other = [gate, up], codes_of(gate), codes_of(up)
    if up not in products or found is None or other is None or not _are_alike(found, other):
        return None
    if found.w.dtype.name not in OFTEN or (found.ids is None and found.columns > 1) or unit.shape[-1] % HIDDEN:
        return None
    assert gate.op is not None
    down = coming.reader(unit, gate.op.name, [*halves, unit], source=1)
    if down is None or codes_of(down) is None or not all(coming.readers.are_within(half, [unit]) for half in halves):
        return None
    if not coming.readers.are_within(unit, [down]):
        return None
    return Layer(gate, up, unit, down, _total(down, [*halves, unit, down], coming))


def _are_alike(a: Codes, b: Codes) -> bool:
    """Whether two products differ in their weights' values only."""
    same = (a.w.dtype, a.w.shape, a.w.strides) == (b.w.dtype, b.w.shape, b.w.strides)
    return same and a.ids is b.ids and a.columns == b.columns and a.batches == b.batches == 1


def _total(down: Tensor, members: Sequence[Tensor], coming: Coming) -> Tensor | None:
    """The weighted sum that alone reads the experts' results, if it could run with them."""
    product = codes_of(down)
    if product is None or product.ids is None or product.w.dtype.name not in SUMMED or product.ids.shape[1] > MOST_USED:
        return None
    total = coming.reader(down, ops.weighted_sum.name, members)
    if total is None or not coming.readers.are_within(down, [total]):
        return None
    return total if total.srcs[1] is not None and total.srcs[1].dtype is dtypes.f32 else None
