"""Copy queues: a device's way to bring weights to it while its programs run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from graphrt.buffer import Location
from graphrt.dtypes import Array
from graphrt.events import Event

Part = tuple[Location, Array]


class CopyQueue(ABC):
    """Copies from the host to one device, done in the order in which they are begun, beside the device's programs.

    The device's `drop` and `synchronize` hold for them as for its other work.
    """

    @abstractmethod
    def begin_writes(self, parts: Sequence[Part], label: str) -> None:
        """Begin to put bytes (u8, on the host) at places; nobody may change them until the next event has passed.

        Args:
            parts: each a place on the device and the bytes for it.
            label: what is copied and where to, for the error of a copy that fails.
        """

    @abstractmethod
    def record(self) -> Event:
        """Mark the point after everything begun so far, for the device to wait for."""

    @abstractmethod
    def wait_for(self, event: Event) -> None:
        """Let copies begun later wait for an event of the device."""
