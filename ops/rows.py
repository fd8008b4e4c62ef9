"""Rows chosen by number: reading, writing and adding them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphrt import dtypes
from graphrt.dtypes import Array
from graphrt.op import Cost, Meta, op, require
from graphrt.ops.checks import (
    ANY_DTYPE,
    broadcast,
    checked_ids,
    describe,
    like,
    present,
    require_dtype,
    require_float,
    require_rank,
    require_values,
    require_writable,
    rounded,
)
from graphrt.ops.copy import WRITABLE
from graphrt.tensor import Tensor

if TYPE_CHECKING:
    from graphrt.testing import Draw

IDS = (dtypes.i32, dtypes.i64)
FLOAT_TARGETS = tuple(dtype for dtype in WRITABLE if not dtype.is_integer)


@op
def get_rows(x: Tensor, ids: Tensor) -> Meta:
    """Read rows by number: y[..., k, :] = x[..., ids[..., k], :].

    Args:    x [B..., R, D] any dtype and strides;  ids [B..., K] i32|i64, in 0..R-1
    Returns: [B..., K, D]; f32 if x is of floats or quantized, else x's integer dtype
    Raises:  GraphError if the batch axes differ, and at run time if an id is outside x
    """
    require_dtype("get_rows", "ids", ids, IDS)
    require_rank("get_rows", "x", x, 2, "[B..., R, D]")
    require(
        ids.rank >= 1 and x.shape[:-2] == ids.shape[:-1],
        f"[get_rows] x {describe(x)} is [B..., R, D] and ids {describe(ids)} [B..., K]: their batch axes must agree; "
        f"reshape or repeat one of them",
    )
    return Meta(x.dtype if x.dtype.is_integer else dtypes.f32, (*ids.shape, x.shape[-1]))


@get_rows.reference
def _(x: Array, ids: Array) -> Array:
    chosen = np.take_along_axis(x, checked_ids("get_rows", ids, x.shape[-2])[..., None], axis=-2)
    return chosen if dtypes.of(x).is_integer else dtypes.to_f32(chosen)


@get_rows.cost
def _(node: Tensor) -> Cost:
    x, ids = present(node)
    # Never worth moving x to another device: ggml counts no batch either.
    return Cost(flops=0, nbytes=ids.size * x.dtype.row_bytes(x.shape[-1]) + ids.nbytes + node.nbytes, batch=0)


@get_rows.cases
def _(draw: Draw) -> Tensor:
    x = draw.tensor(draw.shape(min_rank=2), ANY_DTYPE)
    count = draw.integer(0, 6) if x.shape[-2] else 0
    return get_rows(x, draw.ids((*x.shape[:-2], count), x.shape[-2], draw.choice(IDS)))


@op(kind="write")
def set_rows(target: Tensor, rows: Tensor, ids: Tensor, *, first: int | None = None) -> Meta:
    """Write rows by number: target[..., ids[..., k], :] = rows[..., k, :], cast or quantized to target's dtype.

    Args:    target [B..., R, D] floats or quantized, writable memory (a state or a node), any strides without repeats;
             rows [B..., K, D] f32|f16|bf16;  ids [B..., K] i32|i64, in 0..R-1, no number twice (of two rows with one
             number either may stay); the batch axes of rows and ids broadcast to target's;
             first: the column of target where rows [B..., K, W] go, narrower than target's; the others stay
    Returns: target, as later nodes must read it
    Raises:  GraphError if shapes do not fit or target's dtype cannot be written; at run time if an id is outside target
    """
    require_dtype("set_rows", "ids", ids, IDS)
    require_float("set_rows", rows=rows)
    require_values("set_rows", target=target)
    require_writable("set_rows", target)
    require_rank("set_rows", "target", target, 2, "[B..., R, D]")
    width = target.shape[-1] if first is None or not rows.rank else rows.shape[-1]
    if first is not None:
        block = target.dtype.block
        require(
            first >= 0 and first + width <= target.shape[-1] and first % block == 0 and width % block == 0,
            f"[set_rows] columns {first} to {first + width} of target {describe(target)} must lie in it and be whole "
            f"blocks of {block}",
        )
    require(
        rows.rank >= 2 and ids.rank >= 1 and rows.shape[-1] == width and rows.shape[-2] == ids.shape[-1],
        f"[set_rows] target {describe(target)} is [B..., R, D], rows {describe(rows)} must be [B..., K, D] "
        f"and ids {describe(ids)} [B..., K]; reshape them",
    )
    batch = target.shape[:-2]
    for argument, given in (("rows", rows.shape[:-2]), ("ids", ids.shape[:-1])):
        require(
            broadcast("set_rows", batch, given, f"batch axes of target and {argument} ") == batch,
            f"[set_rows] the batch axes {list(given)} of {argument} must broadcast to target's {list(batch)}",
        )
    return Meta(target.dtype, target.shape, target.strides)


@set_rows.reference
def _(target: Array, rows: Array, ids: Array, *, first: int | None) -> Array:
    batch, count, dtype = target.shape[:-2], ids.shape[-1], dtypes.of(target)
    blocks = dtypes.from_f32(dtypes.to_f32(rows), dtype)
    blocks = np.broadcast_to(blocks, (*batch, count, blocks.shape[-1]))
    at = np.broadcast_to(checked_ids("set_rows", ids, target.shape[-2]), (*batch, count))
    result = target.copy()
    start = (first or 0) // dtype.block
    np.put_along_axis(result[..., start : start + blocks.shape[-1]], at[..., None], blocks, axis=-2)
    return result


@set_rows.cost
def _(node: Tensor) -> Cost:
    target, rows, ids = present(node)
    count = ids.size
    written = count * target.dtype.row_bytes(rows.shape[-1])
    return Cost(flops=rows.size, nbytes=rows.nbytes + ids.nbytes + written, batch=count)


@set_rows.cases
def _(draw: Draw) -> Tensor:
    target = draw.tensor(draw.shape(min_rank=2), FLOAT_TARGETS, role="state")
    batch, (total, width) = target.shape[:-2], target.shape[-2:]
    count = draw.integer(0, total)
    whole, first = draw.boolean(), None
    if draw.boolean():
        block = target.dtype.block
        first = draw.integer(0, width // block) * block
        width = draw.integer(0, (width - first) // block) * block
    rows = draw.tensor((*(batch if whole else (1,) * len(batch)), count, width))
    ids = draw.ids((*batch[draw.integer(0, len(batch)) :], count), total, draw.choice(IDS), unique=True)
    return set_rows(target, rows, ids, first=first)


@op(inplace=["x"])
def add_id(x: Tensor, bias: Tensor, ids: Tensor) -> Meta:
    """Add to each row the bias of its expert: y[t, u, :] = x[t, u, :] + bias[ids[t, u], :].

    Args:    x [T, U, D] f32|f16|bf16, T tokens with U experts each;  bias [E, D] f32|f16|bf16;
             ids [T, U] i32|i64, in 0..E-1
    Returns: [T, U, D] in x's dtype; the sum is taken in f32
    Raises:  GraphError if shapes do not fit, and at run time if an id is outside bias
    """
    require_float("add_id", x=x, bias=bias)
    require_dtype("add_id", "ids", ids, IDS)
    require(
        x.rank == 3 and bias.rank == 2 and bias.shape[1] == x.shape[2] and ids.shape == x.shape[:2],
        f"[add_id] needs x [T, U, D], bias [E, D] and ids [T, U], got {describe(x)}, {describe(bias)} and "
        f"{describe(ids)}; reshape them",
    )
    return like(x)


@add_id.reference
def _(x: Array, bias: Array, ids: Array) -> Array:
    chosen = bias[checked_ids("add_id", ids, len(bias))]
    return rounded(dtypes.to_f32(x) + dtypes.to_f32(chosen), dtypes.of(x))


@add_id.cases
def _(draw: Draw) -> Tensor:
    x = draw.tensor(draw.shape(min_rank=3, max_rank=3))
    bias = draw.tensor((draw.integer(1, 5), x.shape[-1]))
    return add_id(x, bias, draw.ids(x.shape[:2], bias.shape[0], draw.choice(IDS)))
