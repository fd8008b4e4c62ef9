"""Views: other shapes and strides over the same memory. They cost nothing at run time."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import as_strided

from graphrt import dtypes
from graphrt.dtypes import Array
from graphrt.op import Cost, Meta, op, require
from graphrt.ops.checks import ANY_DTYPE, describe
from graphrt.tensor import Shape, Tensor, dense_strides, sliced

if TYPE_CHECKING:
    from graphrt.testing import Draw


@op(kind="view")
def view(x: Tensor, *, shape: Shape, strides: Shape, offset: int = 0) -> Meta:
    """Look at x's memory with another shape and other strides; `x[...]` slicing is written with it.

    Args:    x any dtype and strides;  shape in elements;  strides in bytes, one for each axis, along the last axis of a
             quantized dtype the bytes from block to block;  offset in bytes from x's first element
    Returns: shape, in x's dtype, over x's memory
    Raises:  GraphError if a stride or the offset is negative or cuts an element or block, or the view leaves x's memory
    """
    require(
        len(strides) == len(shape),
        f"[view] shape {list(shape)} and strides {list(strides)} differ in length; give one each",
    )
    steps = [offset, *(stride for stride, length in zip(strides, shape, strict=True) if length > 1)]
    require(
        all(step % x.dtype.nbytes == 0 for step in steps),
        f"[view] offset {offset} and strides {list(strides)} must be multiples of the {x.dtype.nbytes} bytes of one "
        f"{x.dtype.name} {'block' if x.dtype.is_quantized else 'element'}",
    )
    return Meta(x.dtype, tuple(shape), tuple(strides), offset)


@view.reference
def _(x: Array, *, shape: Shape, strides: Shape, offset: int) -> Array:
    dtype = dtypes.of(x)
    blocks = shape if not dtype.is_quantized else (*shape[:-1], shape[-1] // dtype.block)
    if prod(blocks) == 0:
        return np.zeros(blocks, x.dtype)
    # NumPy has no byte offsets: go through the bytes from x's first element up to the view's last.
    first = as_strided(x, (1,), (x.itemsize,)).view(np.uint8)
    extent = offset + sum((n - 1) * stride for n, stride in zip(blocks, strides, strict=True)) + x.itemsize
    memory = as_strided(first, (extent,), (1,))
    return as_strided(memory[offset : offset + x.itemsize].view(x.dtype), blocks, strides)


@view.cases
def _(draw: Draw) -> Tensor:
    x = draw.tensor(draw.shape(), ANY_DTYPE, layout="dense")
    index = []
    for axis, length in enumerate(x.shape):
        block = x.dtype.block if axis == x.rank - 1 else 1
        start = draw.integer(0, length // block) * block
        stop = draw.integer(start // block, length // block) * block
        index.append(slice(start, stop, 1 if block > 1 else draw.integer(1, 3)))
    return view(x, **sliced(x, tuple(index)))


@op(kind="view", layout={"x": "dense"})
def reshape(x: Tensor, *, shape: Shape) -> Meta:
    """Give the same elements, in the same order, another shape.

    Args:    x any dtype, dense;  shape with the same number of elements, one length may be -1: what remains
    Returns: shape, in x's dtype, over x's memory
    Raises:  GraphError if the number of elements differs
    """
    known = prod(length for length in shape if length != -1)
    require(shape.count(-1) <= 1, f"[reshape] shape {list(shape)} has more than one -1; give all lengths but one")
    if -1 in shape:
        require(
            known > 0 and x.size % known == 0,
            f"[reshape] {x.size} elements of {describe(x)} do not divide over {list(shape)}; give a length, not -1",
        )
        shape = tuple(x.size // known if length == -1 else length for length in shape)
    require(
        prod(shape) == x.size,
        f"[reshape] {describe(x)} has {x.size} elements, the shape {list(shape)} {prod(shape)}; give one with as many",
    )
    return Meta(x.dtype, shape, dense_strides(shape, x.dtype))


@reshape.reference
def _(x: Array, *, shape: Shape) -> Array:
    block = dtypes.of(x).block
    return x.reshape(*shape[:-1], shape[-1] if shape[-1] == -1 else shape[-1] // block) if shape else x.reshape(())


@reshape.cases
def _(draw: Draw) -> Tensor:
    x = draw.tensor(draw.shape(min_rank=2), ANY_DTYPE, layout="dense")
    if x.size and draw.boolean():
        return reshape(x, shape=(-1, x.shape[-1]))
    return reshape(x, shape=(prod(x.shape[:-1]), 1, x.shape[-1]))


@op(kind="view")
def permute(x: Tensor, *, axes: Shape) -> Meta:
    """Put the axes in another order, as NumPy's transpose: axis i of the result is axis axes[i] of x.

    ggml's permute counts the other way (it says where each axis goes): this is its inverse.

    Args:    x any strides, the last axis of a quantized dtype stays last;  axes each axis once, negative: from the end
    Returns: x's lengths in the new order, in x's dtype, over x's memory
    Raises:  GraphError if axes is not an order of x's axes, or moves a quantized last axis
    """
    order = tuple(axis % x.rank if -x.rank <= axis < x.rank else axis for axis in axes)
    require(
        sorted(order) == list(range(x.rank)), f"[permute] axes {list(axes)} must name each axis of {describe(x)} once"
    )
    require(
        not x.dtype.is_quantized or order[-1] == x.rank - 1,
        f"[permute] axes {list(axes)} move the last axis of {describe(x)}, along which its blocks lie; "
        f"cast it to a plain dtype first",
    )
    return Meta(x.dtype, tuple(x.shape[axis] for axis in order), tuple(x.strides[axis] for axis in order))


@permute.reference
def _(x: Array, *, axes: Shape) -> Array:
    return x.transpose(axes)


@permute.cases
def _(draw: Draw) -> Tensor:
    x = draw.tensor(draw.shape(), ANY_DTYPE)
    axes = list(range(x.rank))
    movable = x.rank - 1 if x.dtype.is_quantized else x.rank
    for i in range(movable):
        j = draw.integer(i, movable - 1)
        axes[i], axes[j] = axes[j], axes[i]
    return permute(x, axes=tuple(axes))


@op(kind="view")
def transpose(x: Tensor) -> Meta:
    """Swap the last two axes: y[..., i, j] = x[..., j, i].

    Args:    x [..., M, N], plain dtype, any strides
    Returns: [..., N, M] in x's dtype, over x's memory
    Raises:  GraphError if x has fewer than two axes or is quantized
    """
    require(x.rank >= 2, f"[transpose] x must be [..., M, N], got {describe(x)}; add axes with reshape")
    require(
        not x.dtype.is_quantized,
        f"[transpose] the blocks of {describe(x)} lie along the last axis; cast it to a plain dtype first",
    )
    return Meta(x.dtype, (*x.shape[:-2], x.shape[-1], x.shape[-2]), (*x.strides[:-2], x.strides[-1], x.strides[-2]))


@transpose.reference
def _(x: Array) -> Array:
    return x.swapaxes(-1, -2)


@transpose.cases
def _(draw: Draw) -> Tensor:
    return transpose(draw.tensor(draw.shape(min_rank=2), (*dtypes.FLOATS, *dtypes.INTEGERS)))


def _free(node: Tensor) -> Cost:
    return Cost(flops=0, nbytes=0, batch=0)


for _record in (view, reshape, permute, transpose):
    _record.cost(_free)
