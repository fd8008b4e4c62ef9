"""A device: what the backend needs of hardware. CupyDevice is a GPU; ShimDevice runs the same kernels on the CPU."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from graphrt.backends.cuda.hardware import Hardware
from graphrt.backends.cuda.launch import BoundStep
from graphrt.backends.cuda.units import Kernel
from graphrt.dtypes import Array
from graphrt.events import Event

Replay = Callable[[], None]


class Stream(ABC):
    """Copies to a device in the order in which they were begun, beside what is done in other streams."""

    @abstractmethod
    def upload(self, address: int, data: Array) -> None:
        """Begin to copy bytes to the device; nobody may change `data` until the next event has passed."""

    @abstractmethod
    def record(self) -> Event:
        """The point after everything begun so far."""

    @abstractmethod
    def wait_for(self, event: Event) -> None:
        """Let what is begun later wait for an event."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until everything is done.

        Raises: KernelError with what failed.
        """


class Device(Stream):
    """Memory, and a stream of copies and launches; further streams for copies alone.

    Attributes:
        name: in debug output.
        architecture: what kernels are compiled for, "90a"; "cpu" for the shim.
        total_bytes: of its memory that may be taken; None where that is the host's.
        hardware: what launches are cut for.
        speed: operations per second, and bytes per second of its memory, where known.
    """

    name: str
    architecture: str
    total_bytes: int | None
    hardware: Hardware
    speed: tuple[float, float] | None = None

    @abstractmethod
    def allocate(self, nbytes: int) -> tuple[int, Any]:
        """Zeroed memory: its address, and what keeps it alive.

        Raises: MemoryError if there is no room.
        """

    @abstractmethod
    def free_bytes(self) -> int:
        """Bytes of its memory that nobody has taken."""

    @abstractmethod
    def pinned(self, nbytes: int) -> Array:
        """Host memory, as u8, that the device itself reads: copies from it hold up nobody.

        Raises: MemoryError if there is no room.
        """

    @abstractmethod
    def stream(self) -> Stream:
        """A stream for copies beside the device's own."""

    @abstractmethod
    def download(self, address: int, into: Array) -> None:
        """Begin to copy bytes to the host."""

    @abstractmethod
    def load(self, kernels: Sequence[Kernel], progress: Callable[[int, int, str], None] | None = None) -> int:
        """Compile the kernels, or fetch them from the disk, so that launching them waits for nothing.

        Returns: how many there are.
        Raises: KernelError with the compiler's words.
        """

    @abstractmethod
    def prepare(self, launches: Sequence[BoundStep]) -> tuple[Replay, str]:
        """What begins all of these launches, and how it does, for debug output."""
