"""Products that do not wait for each other run as one: all are under way at once, and those of one x prepare it once.

They are those that take x row by row, so not products of floats with many columns. Two that a gated unit reads are
taken in one pass with it: those with few columns (see gated.py), those in int8 (see int8_product.py), and, as a group
of their own, those of floats with many columns (see matmat.py). So is a product with experts whose results a weighted
sum adds up (see fusion_sums.py).

The workspace holds, for each x and form that the weights want it in, what its preparation needs and x so prepared;
then, for each product, its tables of groups and columns and its scratch memory (see grouping.py), and the turns of a
weighted sum of many columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

from graphrt.backends.cpu import host, matmul
from graphrt.backends.cpu.expert_sum import expert_sum_columns, kept_bytes, kept_rows
from graphrt.backends.cpu.expert_sums import turns_bytes
from graphrt.backends.cpu.fusion_sums import start_call, sum_of, sum_of_tiles, weights_of
from graphrt.backends.cpu.glu import ACTIVATIONS
from graphrt.backends.cpu.grouping import Layout, columns, matrices
from graphrt.backends.cpu.int8_product import holds_whole_rows
from graphrt.backends.cpu.jit import native
from graphrt.backends.cpu.prepare import PIECE_BYTES, group_columns
from graphrt.backends.cpu.registry import Call
from graphrt.ops.matmul import mul_mat_transposed
from graphrt.ops.moe import weighted_sum
from graphrt.patterns import Coming, Fused
from graphrt.tensor import Tensor

PRODUCTS = ("mul_mat", "mul_mat_id", "mul_mat_transposed")
MOST = 6  # products in a group
RESULT_BYTES = 1 << 19  # of a product that may be taken before its turn, which keeps its result alive for longer


@dataclass(frozen=True)
class Part:
    """A part of the workspace, which begins at `base`."""

    base: int
    layout: Layout
    threads: int

    @property
    def end(self) -> int:
        return self.base + self.layout.nbytes(self.threads)

    @property
    def span(self) -> tuple[int, int]:
        return self.base, self.end


@dataclass(frozen=True)
class Product:
    """A product; or one or two together with the node that alone reads them, in one pass.

    Args:
        node: the result.
        factors: the products, which are alike: their first two sources are w and x.
    """

    node: Tensor
    factors: tuple[Tensor, ...]

    @property
    def first(self) -> Tensor:
        """The product that says what is multiplied."""
        return self.factors[0]

    @property
    def nodes(self) -> list[Tensor]:
        return [*self.factors, self.node] if self.kind else [self.node]

    @property
    def is_sum(self) -> bool:
        return self.node.op is weighted_sum

    @property
    def takes_turns(self) -> bool:
        """Whether several threads add to the same rows of a sum."""
        return self.is_sum and matmul.has_many_columns(self.first)

    @property
    def kind(self) -> str:
        """What is more than a product."""
        if self.is_sum:
            return "weighted sum"
        return "gated unit" if len(self.factors) > 1 else ""


def products_at_once(coming: Coming, threads: int) -> Fused | None:
    """A product, others that could run now, and gated units of two of them."""
    if _form(coming.first) is None:
        return _gated_tiles(coming, threads) or sum_of_tiles(coming, threads)
    members, is_next = [coming.first], True
    for node in coming.after_first():
        can_run = len(members) < MOST and _form(node) is not None and coming.is_ready(node, [])
        if can_run and (is_next or node.nbytes <= RESULT_BYTES):
            members.append(node)
        else:
            is_next = False
    found = _with_readers(members, coming)
    nodes = tuple(node for product in found for node in product.nodes)
    calls, nbytes = products(found, threads)
    kinds = sorted({product.kind for product in found} - {""})
    name = ", ".join(["products at once"] * (len(found) > 1) + kinds)
    return Fused(nodes, name, nbytes, lower=lambda: calls)


def _gated_tiles(coming: Coming, threads: int) -> Fused | None:
    """A product with many columns that takes x as tiles, another, and the gated unit that alone reads them."""
    gate = coming.first
    if gate.op is None or gate.op.name not in PRODUCTS:
        return None
    for unit in _gated_units(gate, coming):
        up = unit.srcs[1]
        if up is not None and coming.is_ready(up, []) and _is_whole(unit, (gate, up), coming):
            nbytes = matmul.layout(gate, 2).nbytes(threads)
            return Fused((gate, up, unit), "gated unit", nbytes, lower=partial(matmul.tile_calls, gate, unit, up))
    return None


def products(found: Sequence[Product], threads: int) -> tuple[list[Call], int]:
    """The calls of products, and the bytes of their workspace."""
    end = 0
    prepared: list[tuple[Tensor, str, Part]] = []
    reads: list[Part] = []
    for product in found:
        x, form = _x(product.first), _form(product.first)
        assert form is not None
        part = next((part for other, of, part in prepared if of == form and _same_rows(other, x)), None)
        if part is None:
            part = Part(end, _preparation(x, form), threads)
            prepared.append((x, form, part))
            end = part.end
        reads.append(part)
    parts, turns = list[Part](), dict[Product, Part]()
    for product in found:
        parts.append(Part(end, _tables(product), threads))
        end = parts[-1].end
        if product.takes_turns:
            turns[product] = Part(end, Layout(0, 0, turns_bytes(product.node.shape[-1]), 0), threads)
            end = turns[product].end
    prepare = [_prepare(*each) for each in prepared]
    made = list(zip(found, parts, strict=True))
    group = [_group(*each) for each in made]
    multiply = [_multiply(*each, x, turns.get(each[0])) for each, x in zip(made, reads, strict=True)]
    start = [
        start_call(product.node, product.first, call.extras, part.base, call.writes)
        for (product, part), call in zip(made, multiply, strict=True)
        if product in turns
    ]
    return [*prepare, *group, *start, *multiply], end


def _with_readers(members: Sequence[Tensor], coming: Coming) -> list[Product]:
    """The products, those together that a gated unit or a weighted sum alone reads."""
    found, taken = list[Product](), set[Tensor]()
    for member in members:
        unit = next((unit for unit in _gated_units(member, coming) if _is_whole(unit, members, coming)), None)
        if unit is not None:
            found.append(Product(unit, tuple(src for src in unit.srcs if src is not None)))
            taken.update(found[-1].factors)
        total = sum_of(member, coming)
        if total is not None:
            found.append(Product(total, (member,)))
            taken.add(member)
    return [*found, *(Product(node, (node,)) for node in members if node not in taken)]


def _gated_units(gate: Tensor, coming: Coming) -> list[Tensor]:
    """The gated units that a product is the gate of."""
    return [
        node
        for node in coming.after_first()
        if node.op is not None and node.op.name in ACTIVATIONS and node.srcs[0] is gate and node.srcs[1] is not None
    ]


def _is_whole(unit: Tensor, members: Sequence[Tensor], coming: Coming) -> bool:
    """Whether both halves of a gated unit are products, alike, that one pass can make, and which it alone reads."""
    gate, up = unit.srcs
    if gate not in members or up not in members or gate is up or gate is None or up is None or gate.op is not up.op:
        return False
    (w, x, *ids), (other, other_x, *other_ids) = matmul.operands(gate), matmul.operands(up)
    alike = (w.dtype, w.shape, w.strides) == (other.dtype, other.shape, other.strides) and ids == other_ids
    return (
        alike
        and _same_rows(x, other_x)
        and _can_be_halves(gate)
        and all(coming.readers.are_within(half, [unit]) for half in (gate, up))
    )


def _can_be_halves(product: Tensor) -> bool:
    """Whether there are kernels that take two such products at once; with many columns in int8 only of whole rows."""
    if product.op is mul_mat_transposed:
        return False
    return _form(product) != "codes" or holds_whole_rows(_x(product).shape[-1])


def _form(node: Tensor) -> str | None:
    """The form in which a product takes the rows of x; None where it does not, or is no product."""
    return matmul.form_of_x(node) if node.op is not None and node.op.name in PRODUCTS else None


def _x(node: Tensor) -> Tensor:
    return matmul.operands(node)[1]


def _same_rows(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same rows in the same order."""
    if a is b:
        return True
    same = a.root is b.root and a.offset == b.offset and a.dtype is b.dtype
    return same and a.is_dense and b.is_dense and a.size == b.size and a.shape[-1] == b.shape[-1]


def _preparation(x: Tensor, form: str) -> Layout:
    rows = x.size // max(1, x.shape[-1])
    return Layout(prod(x.shape[:-2]), rows, rows * matmul.prepared_bytes(form, x.shape[-1]), PIECE_BYTES)


def _tables(product: Product) -> Layout:
    node, scratch = product.first, matmul.layout(product.first).scratch
    if product.is_sum and not product.takes_turns:
        scratch += kept_bytes(node)
    return Layout(matrices(matmul.operands(node)[0]), columns(node), 0, scratch)


def _prepare(x: Tensor, form: str, part: Part) -> Call:
    """The kernel may write tables too: here those of x as if it were multiplied by itself, which nobody reads."""
    extras = [*part.layout.offsets, 0, x.shape[-1]]
    function = matmul.preparation(form, x.dtype.name)
    return Call(function, [x, x, x, None], (), extras, 0, part.base, [part.span], work=x.size)


def _group(product: Product, part: Part) -> Call:
    """The call that writes a product's tables; into the result only where ids are no experts', into a sum nothing."""
    w, x, *ids = matmul.operands(product.first)
    work = 8 * (part.layout.groups + part.layout.columns)
    tensors = [None if product.is_sum else product.node, w, x, *ids, *[None] * (1 - len(ids))]
    extras = [*part.layout.offsets, 0, x.shape[-1]]
    return Call(native(group_columns, 1), tensors, (), extras, len(ids), part.base, [part.span], work=work)


def _multiply(product: Product, part: Part, prepared: Part, turns: Part | None) -> Call:
    node, (w, x, *ids) = product.node, matmul.operands(product.first)
    at, _, *scratch = part.layout.offsets
    extras = [at, prepared.base + prepared.layout.offsets[1] - part.base, *scratch, 0, x.shape[-1]]
    writes, name = [part.span], node.op.name if node.op is not None and product.kind else ""
    if turns is not None:
        function, tensors = matmul.multiplication(product.first, name), [node, w, weights_of(node), *ids]
        extras += [turns.base + turns.layout.offsets[1] - part.base, 0]
        writes.append(turns.span)
    elif product.is_sum:
        weights, kept_from = weights_of(node), matmul.layout(product.first).scratch
        function = native(expert_sum_columns, w.dtype.name, w.has_dense_rows, host.level().lanes)
        tensors = [node, w, weights, *ids]
        extras += [kept_rows(product.first), kept_from, *weights.strides[:2]]
    elif product.kind:
        function = matmul.multiplication(product.first, name)
        tensors = [node, w, x, matmul.operands(product.factors[1])[0]]
    else:
        function, tensors = matmul.multiplication(node), [node, w, x, *(ids or [None])]
    return Call(function, tensors, (), extras, 1, part.base, writes, [prepared.span])
