"""Buffers in a device's memory: bytes go in and out by copies in the device's queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphrt.buffer import ALIGNMENT, Buffer, Location, failed_copy
from graphrt.dtypes import Array
from graphrt.errors import KernelError

if TYPE_CHECKING:
    from graphrt.backends.cuda.device import Device


class CudaBuffer(Buffer):
    """A stretch of a device's memory."""

    def __init__(self, memory: str, nbytes: int, device: Device) -> None:
        self.memory, self.nbytes = memory, nbytes
        self._device = device
        # Kernels read whole pieces of 16 bytes, and so up to 15 bytes past a tensor.
        self.device_address, self._keeps = device.allocate(max(1, -(-nbytes // ALIGNMENT)) * ALIGNMENT)

    def read(self, offset: int, nbytes: int) -> Array:
        into = np.empty(nbytes, np.uint8)
        self._device.download(self._span(offset, nbytes), into)
        self._device.synchronize()
        return into

    def write(self, offset: int, data: Array) -> None:
        self._device.upload(self._span(offset, data.nbytes), data)
        self._device.synchronize()

    def begin_read(self, offset: int, into: Array, label: str) -> None:
        try:
            self._device.download(self._span(offset, into.nbytes), into)
        except Exception as error:
            raise failed_copy(label, error) from error

    def begin_write(self, offset: int, data: Array, label: str) -> None:
        try:
            self._device.upload(self._span(offset, data.nbytes), data)
        except Exception as error:
            raise failed_copy(label, error) from error

    def _span(self, offset: int, nbytes: int) -> int:
        if offset < 0 or offset + nbytes > self.nbytes:
            raise KernelError(f"[{self.memory}] a copy of {nbytes:,} bytes at {offset:,} leaves {self.nbytes:,} bytes")
        return self.device_address + offset


def address_of(location: Location) -> int:
    """The address on the device.

    Raises: KernelError if the location is in another memory.
    """
    if not isinstance(location.buffer, CudaBuffer):
        raise KernelError(f"[cuda] a tensor lies on {location.buffer.memory}, out of reach; the scheduler must copy it")
    return location.buffer.device_address + location.offset
