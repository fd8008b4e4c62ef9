"""The sim backend: a pretend device, for what a scheduler must get right before there is hardware.

It has memory of its own, with a limit, that nothing but its programs reaches; ops that it lacks; rates by which a
virtual clock runs; and failures on demand. It computes through the ops' references, so its results are right. It may
work while the host goes on, as GPUs do; a second queue then brings it weights meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakSet

from graphrt.backend import YES, Backend, Split, Support
from graphrt.backends.sim.clock import Clock, Host, Rates
from graphrt.backends.sim.copies import SimCopies
from graphrt.backends.sim.failures import Failures
from graphrt.backends.sim.memory import SimBuffer
from graphrt.backends.sim.program import SimProgram, Step
from graphrt.backends.sim.queue import AtOnce, InOrder, Queue
from graphrt.errors import MemoryFullError
from graphrt.events import Event
from graphrt.settings import Settings
from graphrt.tensor import Tensor

__all__ = ["Clock", "Failures", "Host", "Rates", "SimBackend", "SimBuffer", "create"]


class SimBackend(Backend):
    """A pretend device.

    Args:
        name: of the backend and of its memory; several devices differ by it.
        limit: bytes of its memory; none where None.
        missing: names of the ops that it has no kernel for.
        flops, bandwidth, link: operations per second, bytes per second of its memory, bytes per second to the host.
        fail_copy: the number of the copy that fails, counted from 1 in either direction.
        fail_kernel: the number of the kernel that fails, counted from 1, or the name of an op whose next kernel fails.
        failure: what is raised then, once.
        asynchronous: work in the order in which it is begun, while the host goes on.
        host: its virtual time; give devices the same to see how their work overlaps.
    """

    def __init__(
        self,
        name: str = "sim",
        *,
        limit: int | None = None,
        missing: Iterable[str] = (),
        flops: float = 1e13,
        bandwidth: float = 5e11,
        link: float = 2e10,
        fail_copy: int | None = None,
        fail_kernel: int | str | None = None,
        failure: BaseException | None = None,
        asynchronous: bool = False,
        host: Host | None = None,
    ) -> None:
        self.name = self.memory = name
        self.limit = limit
        self.speed = (flops, bandwidth)
        self.missing = frozenset(missing)
        self.clock = Clock(Rates(flops, bandwidth, link), host or Host())
        self.failures = Failures(fail_copy, fail_kernel, failure or RuntimeError("a failure on demand"))
        self.asynchronous = asynchronous
        self._queue: Queue = InOrder(name, self.clock) if asynchronous else AtOnce(self.clock)
        self.copy_queue = SimCopies(f"{name}'s copies", self.clock.beside()) if asynchronous else None
        self._buffers: WeakSet[SimBuffer] = WeakSet()

    @property
    def used(self) -> int:
        """Bytes of the memory that are taken now."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def supports(self, node: Tensor) -> Support:
        if node.op is not None and node.op.name in self.missing:
            return Support(False, f"{self.name} has no kernel for {node.op.name}")
        return YES

    def allocate(self, nbytes: int) -> SimBuffer:
        """Zeroed memory on this device.

        Raises: MemoryFullError if the limit would be exceeded.
        """
        if self.limit is not None and self.used + nbytes > self.limit:
            raise MemoryFullError(
                f"[{self.name}] no room for {nbytes:,} bytes: {self.used:,} of {self.limit:,} are taken; "
                f'move weights away with an override ("regex=cpu"), or drop plans with Scheduler.clear()',
                self.name,
                self.limit - self.used,
            )
        buffer = SimBuffer(self.memory, nbytes, self._queue, self.clock, self.failures)
        self._buffers.add(buffer)
        return buffer

    def record(self) -> Event:
        return self._queue.record()

    def wait_for(self, event: Event) -> None:
        self._queue.wait_for(event)

    def synchronize(self) -> None:
        try:
            self._queue.synchronize()
        finally:
            if self.copy_queue is not None:
                self.copy_queue.synchronize()

    def drop(self, thread: int) -> None:
        self._queue.drop(thread)
        if self.copy_queue is not None:
            self.copy_queue.drop(thread)

    def compile(self, split: Split) -> SimProgram:
        return SimProgram([Step.of(node, split) for node in split.nodes], self._queue, self.clock, self.failures)


def create(settings: Settings) -> SimBackend:
    """Make a device of 8 GiB called "sim"; it has no settings."""
    return SimBackend(limit=8 << 30)
