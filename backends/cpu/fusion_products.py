"""Products of few columns with one x run as one: x is prepared once for all, and all are under way at once.

The workspace holds, for each form that the weights want x in, what its preparation needs and x so prepared; then, for
each product, its tables of groups and columns and its scratch memory (see grouping.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from graphrt.backends.cpu import matmul
from graphrt.backends.cpu.fusion import Coming, Fused
from graphrt.backends.cpu.grouping import Layout, columns, matrices
from graphrt.backends.cpu.jit import Native, native
from graphrt.backends.cpu.prepare import PIECE_BYTES, group_columns, prepare_rows, row_bytes
from graphrt.backends.cpu.registry import Call
from graphrt.tensor import Tensor

PRODUCTS = ("mul_mat", "mul_mat_id", "mul_mat_transposed")
MOST = 6  # products in a group


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


def products_of_one_x(coming: Coming) -> Fused | None:
    """A product of few columns, and others of the same x that could run now."""
    first = coming.first
    if not _has_few_columns(first):
        return None
    members = [first]
    for node in coming.after_first():
        if len(members) < MOST and _has_few_columns(node) and _same_rows(first, node) and coming.is_ready(node, []):
            members.append(node)
    calls, nbytes = products(members, coming.threads)
    name = "products of one x" if len(members) > 1 else ""
    return Fused(tuple(members), name, nbytes, lower=lambda: calls)


def products(nodes: Sequence[Tensor], threads: int) -> tuple[list[Call], int]:
    """The calls of products of one x, and the bytes of their workspace."""
    end, forms, parts = 0, dict[str, Part](), list[Part]()
    for node in nodes:
        form = matmul.units(node).form
        if form not in forms:
            forms[form] = Part(end, _preparation(_x(node), form), threads)
            end = forms[form].end
    for node in nodes:
        parts.append(Part(end, _tables(node), threads))
        end = parts[-1].end
    prepare = [_prepare(_x(nodes[0]), form, part) for form, part in forms.items()]
    group = [_group(node, part) for node, part in zip(nodes, parts, strict=True)]
    multiply = [_multiply(node, part, forms[matmul.units(node).form]) for node, part in zip(nodes, parts, strict=True)]
    return [*prepare, *group, *multiply], end


def _has_few_columns(node: Tensor) -> bool:
    return node.op is not None and node.op.name in PRODUCTS and not matmul.has_many_columns(node)


def _x(node: Tensor) -> Tensor:
    return matmul.operands(node)[1]


def _same_rows(node: Tensor, other: Tensor) -> bool:
    """Whether two products read the same x, or the same rows of it in the same order."""
    a, b = _x(node), _x(other)
    if a is b:
        return True
    same = a.root is b.root and a.offset == b.offset and a.dtype is b.dtype
    return same and a.is_dense and b.is_dense and a.size == b.size and a.shape[-1] == b.shape[-1]


def _preparation(x: Tensor, form: str) -> Layout:
    rows = x.size // max(1, x.shape[-1])
    return Layout(prod(x.shape[:-2]), rows, rows * row_bytes(form, x.shape[-1]), PIECE_BYTES)


def _tables(node: Tensor) -> Layout:
    return Layout(matrices(matmul.operands(node)[0]), columns(node), 0, matmul.layout(node).scratch)


def _prepare(x: Tensor, form: str, part: Part) -> Call:
    """The kernel writes tables too: here those of x as if it were multiplied by itself, which nobody reads."""
    extras = [*part.layout.offsets, 0, x.shape[-1]]
    function = native(prepare_rows, form, x.dtype.name)
    return Call(function, [x, x, x, None], (), extras, 0, part.base, [part.span], work=x.size)


def _group(node: Tensor, part: Part) -> Call:
    """The call that writes a product's tables; into the result only where ids are no experts'."""
    function, results = native(group_columns, 1), len(matmul.operands(node)) - 2
    work = 8 * (part.layout.groups + part.layout.columns)
    return _call(node, function, part, part.layout.offsets, results=results, work=work)


def _multiply(node: Tensor, part: Part, x: Part) -> Call:
    at, _, *scratch = part.layout.offsets
    prepared = x.base + x.layout.offsets[1] - part.base
    return _call(node, matmul.few_columns(node), part, [at, prepared, *scratch], reads=[x.span])


def _call(
    node: Tensor,
    function: Native,
    part: Part,
    offsets: Sequence[int],
    reads: Sequence[tuple[int, int]] = (),
    results: int = 1,
    work: int | None = None,
) -> Call:
    tensors = [node, *node.srcs, *[None] * (3 - len(node.srcs))]
    extras = [*offsets, 0, _x(node).shape[-1]]
    return Call(function, tensors, (), extras, results, part.base, [part.span], reads, work)
