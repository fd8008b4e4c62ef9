"""Fusion of a residual's adds with the norm that follows them: a row is normalised while registers hold it."""

from __future__ import annotations

from functools import partial

from graphrt.backends.cuda.norm import norm_of_sum
from graphrt.patterns import Coming, Fused
from graphrt.splits import value_of
from graphrt.tensor import Tensor


def add_and_norm(coming: Coming) -> Fused | None:
    """add, whose sum others read too, and the rms_norm of the sum; before it perhaps an add that it alone reads."""
    first = coming.first
    if not _adds_alike(first):
        return None
    for outer in (_reader(coming, first), first):
        norm = None if outer is None else coming.reader(outer, "rms_norm", [first, outer])
        if outer is None or norm is None or coming.readers.are_within(outer, [norm]):
            continue
        inner = [] if outer is first else [first]
        sources = (*outer.srcs, *(src for add in inner for src in add.srcs))
        terms = [src for src in sources if src is not None and src not in inner]
        over = tuple((node, src) for node in (outer, norm) for src in terms)
        return Fused(
            (*inner, outer, norm),
            "adds and norm" if inner else "add and norm",
            inplace=over,
            lower=partial(norm_of_sum, norm, outer, terms, first.dtype),
        )
    return None


def _adds_alike(node: Tensor) -> bool:
    """Whether a node adds two tensors of its own shape."""
    return node.op is not None and node.op.name == "add" and all(src and src.shape == node.shape for src in node.srcs)


def _reader(coming: Coming, add: Tensor) -> Tensor | None:
    """The add that alone reads another, if it could run with it."""
    for source in (0, 1):
        outer = coming.reader(add, "add", [add], source)
        if outer is None or not _adds_alike(outer) or not coming.readers.are_within(add, [outer]):
            continue
        other = outer.srcs[1 - source]
        if other is not None and value_of(other) is not add:
            return outer
    return None
