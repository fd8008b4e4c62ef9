"""Buffers: stretches of one memory, and locations in them.

A memory is named. The host's is "host"; all backends that work on it reach each other's tensors without copies. A
device has a memory of its own, into which bytes are written and from which they are read; nothing else reaches it.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphrt.dtypes import Array
from graphrt.errors import KernelError, PlacementError
from graphrt.tensor import Tensor

ALIGNMENT = 64
HOST = "host"


class Buffer(ABC):
    """A stretch of bytes in some memory."""

    memory: str
    nbytes: int

    @abstractmethod
    def read(self, offset: int, nbytes: int) -> Array:
        """Bytes from `offset` on, as u8 on the host, after everything that was begun on the device."""

    @abstractmethod
    def write(self, offset: int, data: Array) -> None:
        """Put bytes (u8, on the host) at `offset`; they may be changed as soon as this returns."""

    def begin_read(self, offset: int, into: Array, label: str) -> None:
        """Begin to bring bytes from `offset` on into an array of u8, complete when the device's next event has passed.

        Args:
            label: what is copied and where to, for the error of a copy that fails.
        """
        try:
            into[:] = self.read(offset, into.nbytes)
        except Exception as error:
            raise failed_copy(label, error) from error

    def begin_write(self, offset: int, data: Array, label: str) -> None:
        """Begin to put bytes at `offset`; nobody may change `data` until the device's next event has passed.

        Args:
            label: as in `begin_read`.
        """
        try:
            self.write(offset, data)
        except Exception as error:
            raise failed_copy(label, error) from error

    @property
    def address(self) -> int:
        """Address of the first byte, for kernels that run on the host."""
        raise KernelError(f"[{self.memory}] has no addresses on the host; the scheduler must copy what is read there")

    def view(self, tensor: Tensor, offset: int) -> Array:
        """The elements of a tensor whose first one lies at `offset`, as a NumPy array over these bytes."""
        raise KernelError(f"[{self.memory}] {tensor!r} is out of the host's reach; the scheduler must copy it")


def failed_copy(label: str, error: Exception) -> KernelError:
    """The error of a copy that failed."""
    return KernelError(f"[copy] {label} failed: {error}")


class HostBuffer(Buffer):
    """Host memory as bytes: aligned to 64 and zeroed, or a leaf's own."""

    memory = HOST

    def __init__(self, data: Array, owner: object = None) -> None:
        self.data = data
        self.nbytes = data.nbytes
        self._address: int = data.__array_interface__["data"][0]
        self._owner = owner

    @classmethod
    def allocate(cls, nbytes: int, raw: Callable[[int], Array] | None = None) -> HostBuffer:
        """Zeroed memory of that size.

        Args:
            raw: gives bytes of any alignment and content; NumPy's where None.
        Raises: PlacementError if the machine has no room.
        """
        try:
            memory = np.zeros(nbytes + ALIGNMENT, np.uint8) if raw is None else raw(nbytes + ALIGNMENT)
        except MemoryError as error:
            raise PlacementError(
                f"[memory] no room for {nbytes:,} bytes on the host; lower n_ctx or the batch size, "
                f"or choose a smaller cache type"
            ) from error
        if raw is not None:
            memory[:] = 0
        start = -memory.__array_interface__["data"][0] % ALIGNMENT
        return cls(memory[start : start + nbytes])

    @classmethod
    def of_leaf(cls, leaf: Tensor) -> HostBuffer:
        """The bytes that a leaf's data spans, gaps included, without a copy."""
        array = leaf.data
        if array is None:
            raise PlacementError(f"[memory] {leaf!r} has no data")
        span: Any = (ctypes.c_uint8 * leaf.extent).from_address(array.__array_interface__["data"][0])
        data = np.frombuffer(span, np.uint8)
        data.flags.writeable = array.flags.writeable
        return cls(data, owner=array)

    @property
    def address(self) -> int:
        return self._address

    def read(self, offset: int, nbytes: int) -> Array:
        return self.data[offset : offset + nbytes]

    def write(self, offset: int, data: Array) -> None:
        self.data[offset : offset + data.nbytes] = data

    def view(self, tensor: Tensor, offset: int) -> Array:
        return tensor.array_over(self.data, offset)


@dataclass(frozen=True)
class Location:
    """Where a tensor's first element lies."""

    buffer: Buffer
    offset: int

    @property
    def address(self) -> int:
        return self.buffer.address + self.offset

    def array(self, tensor: Tensor) -> Array:
        """The tensor's elements as a NumPy array over this memory."""
        return self.buffer.view(tensor, self.offset)

    def after(self, nbytes: int) -> Location:
        """The place so many bytes further."""
        return Location(self.buffer, self.offset + nbytes)
