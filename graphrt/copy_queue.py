"""Copy queues: a device's way to bring weights to it while its programs run."""

from __future__ import annotations

from abc import ABC, abstractmethod

from graphrt.buffer import Location
from graphrt.dtypes import Array
from graphrt.events import Event


class CopyQueue(ABC):
    """Copies from the host to one device, done in the order in which they are begun, beside the device's programs.

    The device's `drop` and `synchronize` hold for them as for its other work.
    """

    @abstractmethod
    def begin_write(self, target: Location, data: Array, label: str) -> None:
        """Begin to put bytes (u8, on the host) at a place; nobody may change them until the next event has passed.

        Args:
            label: what is copied and where to, for the error of a copy that fails.
        """

    @abstractmethod
    def record(self) -> Event:
        """Mark the point after everything begun so far, for the device to wait for."""

    @abstractmethod
    def wait_for(self, event: Event) -> None:
        """Let copies begun later wait for an event of the device."""
