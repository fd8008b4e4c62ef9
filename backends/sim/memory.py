"""Memory of a pretend device: bytes go in and out by copies over its link, and nothing else on the host sees them."""

from __future__ import annotations

import numpy as np

from graphrt.backends.sim.clock import DOWNLOAD, UPLOAD, Clock
from graphrt.backends.sim.failures import Failures
from graphrt.backends.sim.queue import Queue
from graphrt.buffer import Buffer, failed_copy
from graphrt.dtypes import Array
from graphrt.errors import KernelError, PlacementError
from graphrt.tensor import Tensor
from graphrt.worker import Action


class SimBuffer(Buffer):
    """A stretch of a pretend device's memory; `address` and `view` raise, as for every device."""

    def __init__(self, memory: str, nbytes: int, queue: Queue, clock: Clock, failures: Failures) -> None:
        self.memory, self.nbytes = memory, nbytes
        self._queue, self._clock, self._failures = queue, clock, failures
        try:
            self._bytes = np.zeros(nbytes, np.uint8)
        except MemoryError as error:
            raise PlacementError(f"[{memory}] no room for {nbytes:,} bytes on the host that pretends") from error

    def read(self, offset: int, nbytes: int) -> Array:
        into = np.empty(nbytes, np.uint8)
        self._copy(DOWNLOAD, into, self._span(offset, nbytes))
        self._queue.synchronize()
        return into

    def write(self, offset: int, data: Array) -> None:
        self._copy(UPLOAD, self._span(offset, data.nbytes), data.copy())

    def begin_read(self, offset: int, into: Array, label: str) -> None:
        self._copy(DOWNLOAD, into, self._span(offset, into.nbytes), label)

    def begin_write(self, offset: int, data: Array, label: str) -> None:
        self._copy(UPLOAD, self._span(offset, data.nbytes), data, label)

    def begin_write_beside(self, queue: Queue, clock: Clock, offset: int, data: Array, label: str) -> None:
        """The same, by another queue and its clock."""
        queue.begin(self._copying(UPLOAD, self._span(offset, data.nbytes), data, label, clock))

    def array_on_device(self, tensor: Tensor, offset: int) -> Array:
        """The elements of a tensor, for the programs of this device and nobody else."""
        return tensor.array_over(self._bytes, offset)

    def _span(self, offset: int, nbytes: int) -> Array:
        if offset < 0 or offset + nbytes > self.nbytes:
            raise KernelError(f"[{self.memory}] a copy of {nbytes:,} bytes at {offset:,} leaves {self.nbytes:,} bytes")
        return self._bytes[offset : offset + nbytes]

    def _copy(self, direction: str, target: Array, source: Array, label: str | None = None) -> None:
        self._queue.begin(self._copying(direction, target, source, label, self._clock))

    def _copying(self, direction: str, target: Array, source: Array, label: str | None, clock: Clock) -> Action:
        def run() -> None:
            try:
                self._failures.before_copy()
                target[:] = source
            except Exception as error:
                raise error if label is None else failed_copy(label, error) from error
            clock.copy(direction, source.nbytes)

        return run
