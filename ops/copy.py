"""Copies: dense, in another dtype, into another tensor, tiled, joined. Of any dtype; quantized, whole blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphrt import dtypes
from graphrt.dtypes import Array, DType
from graphrt.op import Meta, op, require
from graphrt.ops.checks import ANY_DTYPE, describe, like, require_writable
from graphrt.tensor import Shape, Tensor

if TYPE_CHECKING:
    from graphrt.testing import Draw

WRITABLE = tuple(dtypes.get(name) for name in dtypes.writable())


@op(tolerance=0.0)
def cont(x: Tensor) -> Meta:
    """Copy x into dense memory: y[i, j, ...] = x[i, j, ...], bit for bit.

    Args:    x any dtype and strides
    Returns: x's shape and dtype, dense
    """
    return like(x)


@op(tolerance=0.0)
def dup(x: Tensor) -> Meta:
    """Copy x into memory of its own; the same as cont, under ggml's name for a copy that is meant to be one.

    Args:    x any dtype and strides
    Returns: x's shape and dtype, dense
    """
    return like(x)


def _copied(x: Array) -> Array:
    return x.copy()


def _copy_cases(draw: Draw) -> Tensor:
    return draw.tensor(draw.shape(), ANY_DTYPE)


cont.reference(_copied)
dup.reference(_copied)
cont.cases(lambda draw: cont(_copy_cases(draw)))
dup.cases(lambda draw: dup(_copy_cases(draw)))


@op
def cast(x: Tensor, *, dtype: DType | str) -> Meta:
    """Convert x to another dtype: floats round to nearest, floats to integers towards zero; quantizing makes blocks.

    Args:    x any dtype and strides;  dtype any but those that can only be read (the K- and I-quants)
    Returns: x's shape in dtype, dense; a float that the integer dtype cannot hold gives an unspecified number, as in C
    Raises:  GraphError if the dtype cannot be written, or x's rows are not whole blocks of it
    """
    target = dtypes.get(dtype)
    require(
        target.name in dtypes.writable() or target is x.dtype,
        f"[cast] {target.name} can be read but not written here; choose one of {', '.join(dtypes.writable())}",
    )
    return Meta(target, x.shape)


@cast.reference
def _(x: Array, *, dtype: DType | str) -> Array:
    return converted(x, dtypes.get(dtype))


@cast.cases
def _(draw: Draw) -> Tensor:
    dtype = draw.choice(WRITABLE)
    shape = draw.rows_of(dtype, draw.shape())
    return cast(draw.tensor(shape, ANY_DTYPE if shape[-1] % 256 == 0 else _fitting(shape)), dtype=dtype)


def _fitting(shape: Shape) -> tuple[DType, ...]:
    return tuple(dtype for dtype in ANY_DTYPE if shape[-1] % dtype.block == 0)


def converted(x: Array, dtype: DType) -> Array:
    """An array in another dtype; integers stay exact, everything else goes through float32."""
    source = dtypes.of(x)
    if source is dtype:
        return x.copy()
    if source.is_integer and dtype.is_integer:
        return x.astype(dtype.numpy)
    return dtypes.from_f32(dtypes.to_f32(x), dtype)


@op(kind="write")
def cpy(target: Tensor, x: Tensor) -> Meta:
    """Write x's elements, in order, over target's: target[...] = x, cast to target's dtype.

    Args:    target writable memory (a state or a node), any strides without repeats;
             x any dtype and strides, as many elements
    Returns: target, as later nodes must read it
    Raises:  GraphError if the numbers of elements differ, or target's dtype cannot be written
    """
    require_writable("cpy", target)
    require(
        target.size == x.size,
        f"[cpy] target {describe(target)} and x {describe(x)} differ in elements; slice the larger one",
    )
    return Meta(target.dtype, target.shape, target.strides)


@cpy.reference
def _(target: Array, x: Array) -> Array:
    dtype = dtypes.of(target)
    if dtypes.of(x) is dtype:
        return x.reshape(target.shape).copy()
    plain = dtypes.to_f32(x) if dtypes.of(x).is_quantized else x
    return converted(plain.reshape(dtypes.shape_of(target)), dtype)


@cpy.cases
def _(draw: Draw) -> Tensor:
    dtype = draw.choice(WRITABLE)
    target = draw.tensor(draw.shape(), dtype, role="state")
    x = draw.tensor(target.shape, _fitting(target.shape))
    if draw.boolean() and x.size and not x.dtype.is_quantized:
        return cpy(target, cont(x).reshape(-1))
    return cpy(target, x)


@op(tolerance=0.0)
def repeat(x: Tensor, *, shape: Shape) -> Meta:
    """Tile x to a shape: y[i, j, ...] = x[i mod I, j mod J, ...].

    Args:    x [I, J, ...] any dtype and strides;  shape each length a multiple of x's, more axes in front allowed
    Returns: shape, in x's dtype, dense; blocks of a quantized x are repeated whole
    Raises:  GraphError if a length is not a multiple
    """
    lengths = (1,) * (len(shape) - x.rank) + x.shape
    require(
        len(shape) >= x.rank and all(n % m == 0 if m else n == 0 for n, m in zip(shape, lengths, strict=True)),
        f"[repeat] the lengths of {list(shape)} must be multiples of those of {describe(x)}; choose others",
    )
    return Meta(x.dtype, shape)


@repeat.reference
def _(x: Array, *, shape: Shape) -> Array:
    lengths = (1,) * (len(shape) - x.ndim) + dtypes.shape_of(x)
    return np.tile(x, [n // m if m else 1 for n, m in zip(shape, lengths, strict=True)])


@repeat.cases
def _(draw: Draw) -> Tensor:
    x = draw.tensor(draw.shape(max_rank=3), ANY_DTYPE)
    front = (draw.integer(0, 3),) if draw.boolean() else ()
    return repeat(x, shape=(*front, *(length * draw.integer(0, 3) for length in x.shape)))


@op(tolerance=0.0)
def concat(a: Tensor, b: Tensor, *, axis: int) -> Meta:
    """Join two tensors along an axis: y = [a, b].

    Args:    a, b one dtype (any), any strides, equal in every axis but one;  axis that one, negative: from the end
    Returns: the lengths along axis added, in their dtype, dense; quantized rows join at the last axis too
    Raises:  GraphError if dtypes, ranks or other axes differ
    """
    require(a.dtype is b.dtype, f"[concat] a is {describe(a)} and b {describe(b)}; cast one to the other's dtype")
    require(
        a.rank == b.rank and -a.rank <= axis < a.rank,
        f"[concat] {describe(a)} and {describe(b)} need one rank, and axis {axis} within it; reshape one of them",
    )
    at = axis % a.rank
    require(
        all(n == m for i, (n, m) in enumerate(zip(a.shape, b.shape, strict=True)) if i != at),
        f"[concat] {describe(a)} and {describe(b)} may differ along axis {axis} only; slice or repeat one of them",
    )
    return Meta(a.dtype, (*a.shape[:at], a.shape[at] + b.shape[at], *a.shape[at + 1 :]))


@concat.reference
def _(a: Array, b: Array, *, axis: int) -> Array:
    return np.concatenate([a, b], axis)


@concat.cases
def _(draw: Draw) -> Tensor:
    a = draw.tensor(draw.shape(), ANY_DTYPE)
    axis = draw.integer(0, a.rank - 1)
    length = draw.rows_of(a.dtype, (draw.side(),))[0] if axis == a.rank - 1 else draw.integer(0, 4)
    b = draw.tensor((*a.shape[:axis], length, *a.shape[axis + 1 :]), a.dtype)
    return concat(a, b, axis=axis - a.rank if draw.boolean() else axis)
