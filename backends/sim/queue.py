"""When a pretend device does what the host begins: at once, or in order by a thread while the host goes on."""

from __future__ import annotations

from abc import ABC, abstractmethod

from graphrt.backends.sim.clock import Clock
from graphrt.events import PASSED, Event
from graphrt.worker import Action, Mark, Worker


class Queue(ABC):
    """Takes a device's work: programs and copies."""

    @abstractmethod
    def begin(self, action: Action) -> None:
        """Have something done after all that was begun before."""

    @abstractmethod
    def record(self) -> Event:
        """The point after everything begun so far."""

    @abstractmethod
    def wait_for(self, event: Event) -> None:
        """Let what is begun later wait for an event."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until everything is done."""

    @abstractmethod
    def drop(self, thread: int) -> None:
        """Leave undone what a thread has begun and the device has not."""


class AtOnce(Queue):
    """Does everything while the host waits."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def begin(self, action: Action) -> None:
        self._clock.reach(self._clock.host.now)
        action()
        self._clock.host.reach(self._clock.now)

    def record(self) -> Event:
        return PASSED

    def wait_for(self, event: Event) -> None:
        event.wait()

    def synchronize(self) -> None:
        return

    def drop(self, thread: int) -> None:
        return


class SimEvent(Mark):
    """A point in a queue; `time` is when it passed on the virtual clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self._time = 0.0

    def wait(self) -> None:
        self._clock.host.reach(self.passed_at())

    def passed_at(self) -> float:
        """Wait, and say at which virtual time it passed.

        Raises: what the work before it failed with.
        """
        super().wait()
        return self._time

    def reach(self, error: BaseException | None) -> None:
        self._time = self._clock.now
        super().reach(error)


class InOrder(Worker, Queue):
    """Does one thing after the other, as a worker does, by the virtual clock."""

    def __init__(self, name: str, clock: Clock) -> None:
        super().__init__(name)
        self._clock = clock

    def begin(self, action: Action) -> None:
        begun = self._clock.host.now

        def run() -> None:
            self._clock.reach(begun)
            action()

        super().begin(run)

    def record(self) -> Event:
        return self.put_mark(SimEvent(self._clock))

    def wait_for(self, event: Event) -> None:
        if isinstance(event, SimEvent):
            self.begin(lambda: self._clock.reach(event.passed_at()))
        elif event is not PASSED:
            self.begin(event.wait)
