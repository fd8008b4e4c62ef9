"""Events: points in a device's work that the host, and other devices, wait for."""

from __future__ import annotations

from abc import ABC, abstractmethod


class Event(ABC):
    """The point after everything that one thread of the host had begun on a device."""

    @abstractmethod
    def wait(self) -> None:
        """Block the host until the point is passed.

        Raises: what that work failed with; Cancelled if it was dropped.
        """


class _Passed(Event):
    def wait(self) -> None:
        return


PASSED: Event = _Passed()
