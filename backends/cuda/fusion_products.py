"""Products of one x run as one: x is made ready once, by the norm before them where there is one.

Feed-forward layers take two kernels more, and no more is written of them than their results. All these are products of
quantized weights with few rows of x. The workspace holds x in int8, then what each layer's gated unit gives, in int8
too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphrt import ops
from graphrt.backends.cuda.feed_forward import Layer, layer_of, with_shared
from graphrt.backends.cuda.launch import Address, Launch
from graphrt.backends.cuda.prepared import Prepared
from graphrt.backends.cuda.products_few import (
    MOST_AT_ONCE,
    Codes,
    can_be_at_once,
    codes_of,
    is_aligned,
    make_their_own,
    multiply,
)
from graphrt.backends.cuda.units import Unit
from graphrt.patterns import Coming, Fused
from graphrt.tensor import Tensor

MOST = 6  # products in a group
EIGHT, LONGEST = 8, 8192  # elements of a thread, and of a row, in norm_codes.cu

NORM = Unit("norm_codes", [f"rms_norm_codes<{adds}>" for adds in ("false", "true")], registers=64)


@dataclass(frozen=True)
class Norm:
    """The norm that gives x, with the add that gives what it norms where others read that too."""

    norm: Tensor
    add: Tensor | None = None

    @property
    def nodes(self) -> list[Tensor]:
        return [self.norm] if self.add is None else [self.add, self.norm]

    def launch(self, x: Prepared, *, is_read: bool) -> Launch:
        """What puts x there in int8, and, where somebody else reads it, in its own place too."""
        weight, eps = self.norm.srcs[1], float(self.norm.params["eps"])
        a, b = (self.norm.srcs[0], self.norm.srcs[0]) if self.add is None else self.add.srcs
        assert a is not None
        assert b is not None
        threads = -(-x.width // (EIGHT * 32)) * 32
        results = [Address(self.norm if is_read else None), Address(self.add)]
        return Launch(
            NORM.kernel(f"rms_norm_codes<{'false' if self.add is None else 'true'}>"),
            [x.rows],
            [threads],
            [*results, a, b, Address(weight), eps, *x.arguments],
        )


def products_of_one_x(coming: Coming) -> Fused | None:
    """Products of one x that could run now, the norm before them, and the layers that they begin."""
    norm = _norm(coming)
    before = [] if norm is None else norm.nodes
    products = _products(coming, norm)
    found = [product for node in products if (product := codes_of(node)) is not None]
    layers = with_shared([layer for node in products if (layer := layer_of(node, products, coming))], coming)
    if not found or len(before) + len(found) + len(layers) == 1:
        return None
    if norm is not None and len(layers) == 1 and len(found) == 2 and _has_experts_to_come(layers[0], norm.norm, coming):
        return None
    first = found[0]
    x, hidden = first.prepared, list[Prepared]()
    for layer in layers:
        hidden.append(layer.hidden(hidden[-1].end if hidden else x.end))
    halves = {half for layer in layers for half in layer.halves}
    alone = [product for product in found if product.node not in halves]
    nodes = (*before, *products, *(node for layer in layers for node in layer.readers))
    is_read = norm is not None and not coming.readers.are_within(norm.norm, nodes)

    def of(x: Prepared | Tensor) -> list[Launch]:
        places = zip(layers, hidden, strict=True)
        return [*(multiply(group, x) for group in _at_once(alone)), *(layer.gated(x, at) for layer, at in places)]

    def lower() -> list[Launch]:
        last = [layer.last(place) for layer, place in zip(layers, hidden, strict=True)]
        if norm is not None:
            return [norm.launch(x, is_read=is_read), *of(x), *last]
        their_own = of(first.x)
        if make_their_own(found, their_own):
            return [*their_own, *last]
        return [first.prepared.fill(first.x), *of(x), *last]

    parts = ["norm"] * (norm is not None) + ["products of one x"] * bool(alone) + ["feed-forward"] * bool(layers)
    return Fused(nodes, ", ".join(parts), hidden[-1].end if hidden else x.end, lower=lower)


def _norm(coming: Coming) -> Norm | None:
    """The norm that comes first, or the add that does and its norm, if norm_codes.cu takes them."""
    norm, add = coming.first, None
    if norm.op is not None and norm.op.name == "add":
        add, norm = norm, coming.reader(norm, "rms_norm", [norm])
        repeats = any(src is None or src.shape != add.shape for src in add.srcs)
        if norm is None or repeats or coming.readers.are_within(add, [norm]):
            return None
    if norm.op is None or norm.op.name != "rms_norm" or norm.rank < 2 or not norm.size:
        return None
    sources = norm.srcs if add is None else (*add.srcs, norm.srcs[1])
    fits = all(src is None or (src.dtype.name == "f32" and is_aligned(src)) for src in sources)
    width = norm.shape[-1]
    return Norm(norm, add) if fits and width % 32 == 0 and width <= LONGEST else None


def _products(coming: Coming, norm: Norm | None) -> list[Tensor]:
    """The products of the norm's result, or of what the first product reads, that could run now."""
    if norm is None:
        first = codes_of(coming.first)
        if first is None:
            return []
        x, products, members = first.x, [coming.first], list[Tensor]()
    else:
        x, products, members = norm.norm, list[Tensor](), norm.nodes
    for node in coming.after_first():
        found = codes_of(node) if len(products) < MOST else None
        if found is not None and _same_rows(found.x, x) and coming.is_ready(node, members):
            products.append(node)
    return products


def _has_experts_to_come(layer: Layer, x: Tensor, coming: Coming) -> bool:
    """Whether one token's experts, still to be chosen, will read x too, so that the layer had better wait for them."""
    for node in coming.after_first():
        found = codes_of(node) if node.op is ops.mul_mat_id else None
        if found is not None and found.w.dtype is layer.gate.srcs[0].dtype and _same_rows(found.x, x):
            return node.shape[0] == 1 and layer.unit.shape[-1] % node.shape[-1] == 0
    return False


def _same_rows(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same rows in the same order."""
    if a is b:
        return True
    same = a.root is b.root and a.offset == b.offset and a.dtype is b.dtype
    return same and a.is_dense and b.is_dense and a.size == b.size and a.shape[-1] == b.shape[-1]


def _at_once(products: Sequence[Codes]) -> list[list[Codes]]:
    """The products in groups that are one launch each."""
    groups = list[list[Codes]]()
    for product in products:
        fitting = (group for group in groups if len(group) < MOST_AT_ONCE and can_be_at_once(group[0], product))
        group = next(fitting, None)
        if group is None:
            groups.append([product])
        else:
            group.append(product)
    return groups
