"""What the shape rules and references of several families share: checks with one wording, and conversions of arrays."""

from __future__ import annotations

import numpy as np

from graphrt import dtypes
from graphrt.dtypes import Array, DType
from graphrt.errors import GraphError
from graphrt.op import Meta, require
from graphrt.tensor import Shape, Tensor

ANY_DTYPE = tuple(dtypes.ALL.values())
VALUES = (*dtypes.FLOATS, *dtypes.QUANTIZED)
WEIGHTS = (*VALUES, *dtypes.INTERLEAVED.values())


def like(x: Tensor) -> Meta:
    """A dense result with x's dtype and shape."""
    return Meta(x.dtype, x.shape)


def describe(x: Tensor) -> str:
    """Dtype and shape, as error messages show them: "f16 [2, 64]"."""
    return f"{x.dtype.name} {list(x.shape)}"


def present(node: Tensor) -> list[Tensor]:
    """The node's sources, without those that are absent."""
    return [src for src in node.srcs if src is not None]


def require_dtype(op: str, argument: str, x: Tensor, allowed: tuple[DType, ...]) -> None:
    """Raise GraphError unless x has one of the allowed dtypes."""
    if x.dtype not in allowed:
        names = ", ".join(dtype.name for dtype in allowed)
        raise GraphError(f"[{op}] {argument} must be one of {names}, got {describe(x)}; convert it with ops.cast")


def require_float(op: str, **tensors: Tensor | None) -> None:
    """Raise GraphError unless every tensor that is given is f32, f16 or bf16."""
    for argument, x in tensors.items():
        if x is not None:
            require_dtype(op, argument, x, dtypes.FLOATS)


def require_values(op: str, **tensors: Tensor) -> None:
    """Raise GraphError unless every tensor holds floats, plain or quantized."""
    for argument, x in tensors.items():
        require_dtype(op, argument, x, VALUES)


def require_rank(op: str, argument: str, x: Tensor, least: int, meaning: str) -> None:
    """Raise GraphError unless x has at least `least` axes; `meaning` names them."""
    if x.rank < least:
        raise GraphError(f"[{op}] {argument} must be {meaning}, got {describe(x)}; add axes with reshape")


def require_writable(op: str, target: Tensor) -> None:
    """Raise GraphError unless each element of target has bytes of its own, in a dtype that can be written."""
    if target.dtype.name not in dtypes.writable():
        raise GraphError(
            f"[{op}] {target.dtype.name} can be read but not written here; choose one of {', '.join(dtypes.writable())}"
        )
    end = target.dtype.nbytes
    for stride, length in sorted(zip(target.strides, target.blocks_shape, strict=True)):
        if length > 1 and target.size:
            require(
                stride >= end,
                f"[{op}] elements of the target {target!r} share memory (strides {list(target.strides)}); "
                f"write into a view without repeats",
            )
            end += (length - 1) * stride


def broadcast(op: str, a: Shape, b: Shape, what: str = "") -> Shape:
    """The shape that NumPy's broadcasting makes of two shapes."""
    try:
        return np.broadcast_shapes(a, b)
    except ValueError:
        raise GraphError(
            f"[{op}] {what}{list(a)} and {list(b)} do not broadcast: aligned at the last axis, lengths must agree "
            f"or be 1; reshape or repeat one of them"
        ) from None


def rounded(value: Array, dtype: DType) -> Array:
    """A reference's float32 or float64 result in a float dtype."""
    return dtypes.from_f32(value, dtype)


def checked_ids(op: str, ids: Array, count: int) -> Array:
    """Row numbers as NumPy's index type.

    Raises: GraphError if one is outside 0..count-1, where NumPy would wrap negative ones around.
    """
    if ids.size and (ids.min() < 0 or ids.max() >= count):
        raise GraphError(f"[{op}] ids reach from {ids.min()} to {ids.max()}; there are rows 0 to {count - 1}")
    return ids.astype(np.intp)
