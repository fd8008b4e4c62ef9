"""Memory of a pretend device: bytes go in and out by copies over its link, and nothing else on the host sees them."""

from __future__ import annotations

import numpy as np

from graphrt.backends.sim.clock import DOWNLOAD, UPLOAD, Clock
from graphrt.backends.sim.failures import Failures
from graphrt.buffer import Buffer
from graphrt.dtypes import Array
from graphrt.errors import KernelError, PlacementError
from graphrt.tensor import Tensor


class SimBuffer(Buffer):
    """A stretch of a pretend device's memory; `address` and `view` raise, as for every device."""

    def __init__(self, memory: str, nbytes: int, clock: Clock, failures: Failures) -> None:
        self.memory, self.nbytes = memory, nbytes
        self._clock, self._failures = clock, failures
        try:
            self._bytes = np.zeros(nbytes, np.uint8)
        except MemoryError as error:
            raise PlacementError(f"[{memory}] no room for {nbytes:,} bytes on the host that pretends") from error

    def read(self, offset: int, nbytes: int) -> Array:
        self._check(offset, nbytes)
        self._clock.copy(DOWNLOAD, nbytes)
        return self._bytes[offset : offset + nbytes].copy()

    def write(self, offset: int, data: Array) -> None:
        self._check(offset, data.nbytes)
        self._clock.copy(UPLOAD, data.nbytes)
        self._bytes[offset : offset + data.nbytes] = data

    def array_on_device(self, tensor: Tensor, offset: int) -> Array:
        """The elements of a tensor, for the programs of this device and nobody else."""
        return tensor.array_over(self._bytes, offset)

    def _check(self, offset: int, nbytes: int) -> None:
        self._failures.before_copy()
        if offset < 0 or offset + nbytes > self.nbytes:
            raise KernelError(f"[{self.memory}] a copy of {nbytes:,} bytes at {offset:,} leaves {self.nbytes:,} bytes")
