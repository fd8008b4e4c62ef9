"""Launches of norms, alone or of sums that are kept too."""

from __future__ import annotations

from collections.abc import Sequence

from graphrt import ops
from graphrt.backends.cuda.elements import WIDTH, kind, row_geometry, rows_by_eight
from graphrt.backends.cuda.launch import Address, Argument, Launch, Whole
from graphrt.backends.cuda.registry import lowering
from graphrt.backends.cuda.units import Unit
from graphrt.dtypes import DType
from graphrt.kernels import floats
from graphrt.tensor import Tensor

MOST_TERMS = 3
LONGEST, OUTPUTS_OF_BLOCK = 8192, 2  # as in norm_products.cu
PRODUCTS = Unit("norm_products", ["norm_products"])
UNIT = Unit("norm", [f"rms_norm<{terms}>" for terms in range(1, MOST_TERMS + 1)], registers=64)


@lowering(ops.rms_norm, takes=floats)
def _(node: Tensor) -> list[Launch]:
    x = node.srcs[0]
    assert x is not None
    return norm_of_sum(node, node, [x], x.dtype)


def norm_of_sum(norm: Tensor, total: Tensor, terms: Sequence[Tensor], inner: DType) -> list[Launch]:
    """The launch of a norm of a sum of tensors of one shape, which is kept in `total`.

    Args:
        terms: [a], [a, b] or [a, b, c], which is a + (b + c).
        inner: the dtype that b + c is rounded to.
    """
    length, weight = norm.shape[-1], norm.srcs[1]
    given = [*terms] if weight is None else [*terms, weight]
    by_eight = length % WIDTH == 0 and rows_by_eight(*given)
    grid, block = row_geometry(norm.size // length, length)
    a, b, c = (*terms, *[terms[0]] * (MOST_TERMS - len(terms)))
    kinds = [kind(norm), kind(a), kind(b), kind(c), inner.gguf, kind(weight)]
    scalars = [*kinds, 0 if weight is None else weight.strides[-1], by_eight, float(norm.params["eps"])]
    kernel = UNIT.kernel(f"rms_norm<{len(terms)}>")
    return [Launch(kernel, grid, block, [norm, total, a, b, c, Address(weight), *scalars])]


def norm_and_products(norm: Tensor, total: Tensor, products: Tensor) -> list[Launch]:
    """The launch of a norm of a sum of two, which is kept in `total`, and of its products with float32 weights."""
    (a, b), (w, _), weight = total.srcs, products.srcs, norm.srcs[1]
    assert a is not None
    assert b is not None
    assert w is not None
    results = [Address(norm), Address(total)]
    grid = [norm.size // norm.shape[-1], -(-w.shape[0] // OUTPUTS_OF_BLOCK)]
    arguments: list[Argument] = [*results, a, b, Address(weight), float(norm.params["eps"])]
    arguments += [Address(w), Whole(w.strides[0]), Address(products), w.shape[0]]
    return [Launch(PRODUCTS.kernel("norm_products"), grid, [256], arguments)]
