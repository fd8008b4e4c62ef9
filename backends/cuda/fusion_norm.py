"""Fusion of a residual's adds with the norm that follows them: a row is normalised while registers hold it.

A router's products with the norm of a few rows can be made in the same launch.
"""

from __future__ import annotations

from functools import partial

from graphrt import dtypes
from graphrt.backends.cuda.elements import WIDTH
from graphrt.backends.cuda.norm import LONGEST, norm_and_products, norm_of_sum
from graphrt.backends.cuda.products_few import is_aligned
from graphrt.patterns import Coming, Fused
from graphrt.splits import value_of
from graphrt.tensor import Tensor

MOST_ROWS, MOST_PRODUCTS = 4, 512  # more are faster apart: every block of products makes the norm for itself


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
        products = None if inner else _products(coming, outer, norm)
        if products is not None:
            return Fused(
                (outer, norm, products),
                "add, norm and products",
                is_apart=True,
                lower=partial(norm_and_products, norm, outer, products),
            )
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


def _products(coming: Coming, add: Tensor, norm: Tensor) -> Tensor | None:
    """The product of the norm of a few rows with a few float32 weights, if norm_products.cu takes all of it."""
    products = coming.reader(norm, "mul_mat", [add, norm], source=1)
    w = None if products is None else products.srcs[0]
    if w is None or w.rank != 2 or w.shape[0] > MOST_PRODUCTS or not 0 < norm.size <= MOST_ROWS * norm.shape[-1]:
        return None
    sources = (*add.srcs, norm.srcs[1], w)
    fits = all(src is None or (src.dtype is dtypes.f32 and is_aligned(src)) for src in sources)
    return products if fits and norm.shape[-1] % WIDTH == 0 and norm.shape[-1] <= LONGEST else None


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
