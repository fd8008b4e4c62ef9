"""Tensors: a name, a dtype, a shape, byte strides, and where its bytes come from (an op, a leaf, another tensor).

Shapes are in NumPy order, slowest axis first. Strides are in bytes; along the last axis of a quantized tensor one step
is one block. A tensor that shares another's memory has that tensor's root as `root` and a byte `offset` from its start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from graphrt import dtypes
from graphrt.dtypes import Array, DType
from graphrt.errors import GraphError, PlacementError

if TYPE_CHECKING:
    from graphrt.op import Op

Role = Literal["node", "weight", "input", "state", "constant"]
Shape = tuple[int, ...]


class Tensor:
    """One value in a graph: the result of an op, or a leaf.

    Leafs have a role: a `weight` (read-only data), a `constant` (small data made in Python), an `input` (bytes given at
    each run, or read from an array at each) or a `state` (memory that outlives runs and may be written, as a KV cache).

    Attributes:
        size: number of elements.
    """

    __slots__ = (
        "__weakref__",
        "_data",
        "dtype",
        "name",
        "offset",
        "op",
        "params",
        "role",
        "root",
        "shape",
        "size",
        "srcs",
        "strides",
    )

    def __init__(
        self,
        name: str,
        dtype: DType,
        shape: Shape,
        *,
        strides: Shape | None = None,
        op: Op | None = None,
        srcs: tuple[Tensor | None, ...] = (),
        params: Mapping[str, Any] | None = None,
        view_of: Tensor | None = None,
        offset: int = 0,
        data: Array | None = None,
        role: Role = "node",
    ) -> None:
        check_shape(name or (op.name if op else "tensor"), shape, dtype)
        self.name = name
        self.dtype = dtype
        self.shape = shape
        self.size = prod(shape)
        self.strides = dense_strides(shape, dtype) if strides is None else strides
        self.op = op
        self.srcs = srcs
        self.params: Mapping[str, Any] = params or {}
        self.root: Tensor = self if view_of is None else view_of.root
        self.offset: int = offset if view_of is None else view_of.offset + offset
        self._data = data
        self.role: Role = role
        if dtype.rows > 1:
            check_interleaved(self)

    # -- facts -----------------------------------------------------------------------------------------------------

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, were they dense."""
        return self.size // self.dtype.block * self.dtype.nbytes

    @property
    def blocks_shape(self) -> Shape:
        """The shape as NumPy sees it: the last axis counts blocks."""
        return self.shape if not self.dtype.is_quantized else (*self.shape[:-1], self.shape[-1] // self.dtype.block)

    @property
    def extent(self) -> int:
        """Bytes from the first element's start to the last element's end."""
        if self.size == 0:
            return 0
        return sum((n - 1) * s for n, s in zip(self.blocks_shape, self.strides, strict=True)) + self.dtype.nbytes

    @property
    def is_dense(self) -> bool:
        """Whether the elements lie one after the other, in order, without gaps."""
        return self.size == 0 or _same_layout(self.blocks_shape, self.strides, dense_strides(self.shape, self.dtype))

    @property
    def has_dense_rows(self) -> bool:
        """Whether the elements of each row (the last axis) lie one after the other."""
        return self.size == 0 or self.rank == 0 or self.blocks_shape[-1] <= 1 or self.strides[-1] == self.dtype.nbytes

    @property
    def is_view(self) -> bool:
        return self.root is not self

    @property
    def is_leaf(self) -> bool:
        return self.op is None

    @property
    def has_data(self) -> bool:
        """Whether a leaf has an array on the host; a state has none until it is asked for."""
        return self._data is not None

    @property
    def data(self) -> Array | None:
        """A leaf's own array; a state's memory is made, zeroed, when first asked for."""
        if self._data is None and self.role == "state":
            try:
                self._data = np.zeros(self.blocks_shape, self.dtype.numpy)
            except (MemoryError, ValueError) as error:
                raise PlacementError(
                    f"[{self.name}] no room for {self.nbytes:,} bytes on the host; "
                    f"lower n_ctx, or choose a smaller cache type"
                ) from error
        return self._data

    @property
    def origin(self) -> tuple[object, ...]:
        """The same for weights over the same bytes, which each memory holds only once."""
        if self.role != "weight" or self._data is None:
            return (id(self),)
        return self._data.__array_interface__["data"][0], self.dtype.name, self.shape, self.strides

    def alias(self, name: str) -> Tensor:
        """A leaf over the same bytes, to be placed by a name of its own."""
        return Tensor(name, self.dtype, self.shape, strides=self.strides, data=self._data, role=self.role)

    def array_over(self, memory: Array, offset: int = 0) -> Array:
        """This tensor's elements as an array over `memory` (u8), where `offset` is the byte of its first element."""
        return np.ndarray(self.blocks_shape, self.dtype.numpy, memory, offset, self.strides)

    def named(self, name: str) -> Tensor:
        """Give the tensor a name, for debug output, overrides and outputs; returns the tensor itself."""
        self.name = name
        return self

    # -- Python's operators ----------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        source = self.op.name if self.op else self.role
        return f"Tensor({self.name or '?'}: {self.dtype.name} {list(self.shape)} = {source})"

    def __add__(self, other: Tensor | float) -> Tensor:
        return _op("add")(self, other) if isinstance(other, Tensor) else _op("scale")(self, bias=float(other))

    def __radd__(self, other: float) -> Tensor:
        return self + other

    def __sub__(self, other: Tensor | float) -> Tensor:
        return _op("sub")(self, other) if isinstance(other, Tensor) else _op("scale")(self, bias=-float(other))

    def __rsub__(self, other: float) -> Tensor:
        return _op("scale")(self, factor=-1.0, bias=float(other))

    def __mul__(self, other: Tensor | float) -> Tensor:
        return _op("mul")(self, other) if isinstance(other, Tensor) else _op("scale")(self, factor=float(other))

    def __rmul__(self, other: float) -> Tensor:
        return self * other

    def __truediv__(self, other: Tensor | float) -> Tensor:
        return _op("div")(self, other) if isinstance(other, Tensor) else _op("scale")(self, factor=1.0 / other)

    def __neg__(self) -> Tensor:
        return _op("scale")(self, factor=-1.0)

    def __getitem__(self, index: Any) -> Tensor:
        return _op("view")(self, **sliced(self, index))

    def reshape(self, *shape: int) -> Tensor:
        """The same elements in another shape; one length may be -1."""
        return _op("reshape")(self, shape=shape)

    def permute(self, *axes: int) -> Tensor:
        """The axes in another order, as NumPy's transpose: axis i of the result is axis axes[i] of this tensor."""
        return _op("permute")(self, axes=axes)


def weight(name: str, array: Array) -> Tensor:
    """A leaf over read-only data, without a copy; the array's dtype must be one of graphrt's."""
    return _over(name, array, "weight")


def constant(name: str, array: Array) -> Tensor:
    """A leaf over small data made in Python."""
    return _over(name, array, "constant")


def input(
    name: str, shape: Shape | None = None, dtype: DType | str = dtypes.f32, *, data: Array | None = None
) -> Tensor:
    """A leaf whose bytes are given at each run, under its name; or that lies in an array of yours.

    Args:
        shape, dtype: of the bytes that a plan keeps for the input.
        data: in place of these, an array that each run reads where it lies: change it between runs, nothing is copied.
    Raises: GraphError unless either a shape or data is given.
    """
    if (shape is None) == (data is None):
        raise GraphError(f'[input] "{name}" needs either a shape or data')
    if data is not None:
        return _over(name, data, "input")
    return Tensor(name, dtypes.get(dtype), tuple(shape or ()), role="input")


def state(
    name: str, shape: Shape | None = None, dtype: DType | str = dtypes.f32, *, data: Array | None = None
) -> Tensor:
    """A leaf in memory that outlives runs and that set_rows and cpy may write, as a KV cache.

    Args:
        shape, dtype: of memory that is made, zeroed, when first asked for.
        data: in place of these, an array that is the memory.
    Raises: GraphError unless either a shape or data is given, or if the data cannot be written.
    """
    if (shape is None) == (data is None):
        raise GraphError(f'[state] "{name}" needs either a shape or data')
    if data is not None:
        if not data.flags.writeable:
            raise GraphError(f'[state] "{name}" lies in an array that is read-only; give one that can be written')
        return _over(name, data, "state")
    return Tensor(name, dtypes.get(dtype), tuple(shape or ()), role="state")


def _over(name: str, array: Array, role: Role) -> Tensor:
    array = np.asarray(array)
    if any(stride < 0 for stride in array.strides):
        raise GraphError(f'[{role}] "{name}" has negative strides {array.strides}; copy it with np.ascontiguousarray')
    return Tensor(name, dtypes.of(array), dtypes.shape_of(array), strides=array.strides, data=array, role=role)


def check_shape(what: str, shape: Shape, dtype: DType) -> None:
    """Raise GraphError unless the shape is of whole, non-negative lengths, and its rows of whole blocks."""
    if any(not isinstance(n, (int, np.integer)) or n < 0 for n in shape):
        raise GraphError(f"[{what}] shape {shape} must hold whole numbers >= 0")
    if dtype.is_quantized and (not shape or shape[-1] % dtype.block):
        raise GraphError(
            f"[{what}] {dtype.name} rows hold whole blocks of {dtype.block} elements; the shape {shape} does not; "
            "pad the last axis or choose a plain dtype"
        )


def check_interleaved(x: Tensor) -> None:
    """Raise GraphError unless a tensor of interleaved rows, or a view of one, keeps them whole and side by side."""
    rows, side_by_side = dense_strides(x.shape[-2:], x.dtype), x.dtype.rows * x.dtype.row_bytes(x.shape[-1])
    steps = [stride for stride, length in zip(x.strides[:-2], x.shape[:-2], strict=True) if length > 1]
    is_whole = x.rank > 1 and x.shape[-2] % x.dtype.rows == 0 and x.shape[-1] == x.root.shape[-1]
    if not is_whole or (x.size and (x.strides[-2:] != rows or any(n % side_by_side for n in (*steps, x.offset)))):
        raise GraphError(
            f"[{x.name or 'tensor'}] {x.dtype.name} has {x.dtype.rows} rows side by side, which the shape "
            f"{list(x.shape)} with strides {list(x.strides)} at byte {x.offset} would cut: take whole rows, "
            f"{x.dtype.rows} at a time, or give weights in {x.dtype.plain.name}"
        )


def dense_strides(shape: Shape, dtype: DType) -> Shape:
    """Byte strides of a dense tensor."""
    blocks = shape if not dtype.is_quantized else (*shape[:-1], shape[-1] // dtype.block)
    strides = [dtype.nbytes] * len(blocks)
    for axis in range(len(blocks) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * max(1, blocks[axis + 1])
    return tuple(strides)


def _same_layout(shape: Shape, a: Shape, b: Shape) -> bool:
    """Whether two strides agree on every axis that has more than one element."""
    return all(n <= 1 or x == y for n, x, y in zip(shape, a, b, strict=True))


def sliced(x: Tensor, index: Any) -> dict[str, Any]:
    """NumPy's basic slicing (integers, slices with positive steps, ellipsis) as the parameters of a view."""
    entries = list(index) if isinstance(index, tuple) else [index]
    if entries.count(Ellipsis) > 1:
        raise GraphError(f"[view] {x!r}: an index can hold one ellipsis only, got {index}")
    if Ellipsis in entries:
        at = entries.index(Ellipsis)
        entries[at : at + 1] = [slice(None)] * (x.rank - len(entries) + 1)
    entries += [slice(None)] * (x.rank - len(entries))
    if len(entries) > x.rank:
        raise GraphError(f"[view] {x!r}: {len(entries)} indices for {x.rank} axes")
    shape, strides, offset = [], [], 0
    for axis, entry in enumerate(entries):
        block = x.dtype.block if axis == x.rank - 1 else 1
        start, stop, step = _bounds(x, axis, entry)
        if start % block or (block > 1 and (stop - start) % block) or (block > 1 and step != 1):
            raise GraphError(f"[view] {x!r}: {entry} cuts a block of {block} elements; slice at multiples of {block}")
        offset += start // block * x.strides[axis]
        if isinstance(entry, slice):
            shape.append(max(0, -(-(stop - start) // step)))
            strides.append(x.strides[axis] * step)
    return {"shape": tuple(shape), "strides": tuple(strides), "offset": offset if 0 not in shape else 0}


def _bounds(x: Tensor, axis: int, entry: Any) -> tuple[int, int, int]:
    length = x.shape[axis]
    if isinstance(entry, slice):
        start, stop, step = entry.indices(length)
        if step < 1:
            raise GraphError(f"[view] {x!r}: the step of {entry} on axis {axis} must be positive")
        return start, max(start, stop), step
    if not isinstance(entry, (int, np.integer)) or not -length <= entry < length:
        raise GraphError(f"[view] {x!r}: index {entry!r} on axis {axis} is not a slice or a number below {length}")
    at = int(entry) % length
    return at, at + 1, 1


def _op(name: str) -> Callable[..., Tensor]:
    from graphrt.op import find

    return find(name)
