"""Feed-forward layers of quantized weights and few rows: a gated unit's products with it, experts with their sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from graphrt import dtypes, ops
from graphrt.backends.cuda.launch import Address, Argument, Launch, Whole
from graphrt.backends.cuda.prepared import Prepared
from graphrt.backends.cuda.products_few import (
    OFTEN,
    ROWS,
    WARPS,
    Codes,
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
        shared: a layer of the same x, taken as experts of the same width that its token uses too.
        both: the sum of the two, which alone reads them.
    """

    gate: Tensor
    up: Tensor
    unit: Tensor
    down: Tensor
    total: Tensor | None
    shared: Layer | None = None
    both: Tensor | None = None

    @property
    def halves(self) -> list[Tensor]:
        """The products of x."""
        return [self.gate, self.up, *([] if self.shared is None else self.shared.halves)]

    @property
    def readers(self) -> list[Tensor]:
        """The nodes after them."""
        of_shared = [] if self.shared is None else self.shared.readers
        return [self.unit, self.down, *of_shared, *(node for node in (self.total, self.both) if node is not None)]

    @property
    def slots(self) -> int:
        """The experts of all tokens, or 1."""
        return self.unit.size // self.unit.shape[-1]

    @property
    def shared_slots(self) -> int:
        """How many experts the shared layer makes."""
        return 0 if self.shared is None else self.shared.unit.shape[-1] // self.unit.shape[-1]

    def hidden(self, base: int) -> Prepared:
        """Where the gated units' results lie."""
        return Prepared(self.slots + self.shared_slots, self.unit.shape[-1], base)

    def gated(self, x: Prepared | Tensor, hidden: Prepared) -> Launch:
        """What puts the gated units' results there."""
        gate, (up, *_) = codes_of(self.gate), self.up.srcs
        assert gate is not None
        assert self.unit.op is not None
        used: list[Argument] = [0, 0] if gate.ids is None else [gate.ids.shape[1], gate.x.shape[1]]
        first_of_up = Whole(hidden.width if self.up is self.gate else 0)
        kind = ACTIVATIONS.index(self.unit.op)
        ids = gate.w if gate.ids is None else gate.ids
        given = [gate.w, up, ids, *x_arguments(x, gate.w)]
        shared = [gate.w, up] if self.shared is None else [half.srcs[0] for half in self.shared.halves]
        return Launch(
            UNIT.kernel(f"gated<{gate.w.dtype}>"),
            [hidden.rows, hidden.width // HIDDEN],
            [GATED_WARPS * 32],
            [*given, *hidden.arguments, first_of_up, *used, kind, *shared, self.slots],
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
        split = split_of(tokens * groups, (used + self.shared_slots) * steps_of(hidden.width))
        steps = [Whole(step) for step in shares.strides[:2]]  # [T, U] or [T, U, 1]
        given = [self.both or self.total, down.w, down.ids, Address(shares), *steps, *hidden.arguments, used, split]
        shared = down.w if self.shared is None else self.shared.down.srcs[0]
        return Launch(
            UNIT.kernel(f"summed<{down.w.dtype}>"),
            [tokens, -(-groups * split // WARPS)],
            [WARPS * 32],
            [*given, shared, self.shared_slots],
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


def with_shared(layers: Sequence[Layer], coming: Coming) -> list[Layer]:
    """The layers, a token's experts as one with the layer that sees every token, if there are both."""
    for experts in layers:
        for shared in layers:
            both = _sum_of(experts, shared, coming) if can_be_shared(experts, shared) else None
            if both is not None:
                joined = replace(experts, shared=shared, both=both)
                return [joined, *(layer for layer in layers if layer not in (experts, shared))]
    return list(layers)


def can_be_shared(experts: Layer, shared: Layer) -> bool:
    """Whether a layer can be taken as some more of a token's experts."""
    if experts.total is None or experts.total.shape[0] != 1 or shared.gate.op is not ops.mul_mat:
        return False
    pairs = ((experts.gate, shared.gate), (experts.down, shared.down))
    dtypes_fit = all(a.srcs[0] and b.srcs[0] and a.srcs[0].dtype is b.srcs[0].dtype for a, b in pairs)
    width, of_shared = experts.unit.shape[-1], shared.unit.shape[-1]
    room = MOST_USED - experts.slots
    alike = experts.unit.op is shared.unit.op and shared.up is not shared.gate and dtypes_fit
    return alike and of_shared % width == 0 and of_shared // width <= room


def _sum_of(experts: Layer, shared: Layer, coming: Coming) -> Tensor | None:
    """The add that alone reads both layers' results."""
    assert experts.total is not None
    members = [*experts.halves, *experts.readers, *shared.halves, *shared.readers]
    both = coming.reader(experts.total, "add", members)
    if both is None or both.srcs[1] is not shared.down or both.shape != experts.total.shape:
        return None
    are_inner = all(coming.readers.are_within(each, [both]) for each in (experts.total, shared.down))
    return both if are_inner else None
