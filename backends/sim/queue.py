"""When a pretend device does what the host begins: at once, or in order by a thread while the host goes on."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from graphrt.backends.sim.clock import Clock, Host
from graphrt.errors import Cancelled
from graphrt.events import PASSED, Event

Action = Callable[[], None]


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


class SimEvent(Event):
    """A point in a queue; `time` is when it passed on the virtual clock."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._time = 0.0
        self._error: BaseException | None = None
        self._passed = threading.Event()

    def wait(self) -> None:
        self._host.reach(self.passed_at())

    def passed_at(self) -> float:
        """Wait, and say at which virtual time it passed.

        Raises: what the work before it failed with.
        """
        self._passed.wait()
        if self._error is not None:
            raise self._error
        return self._time

    def pass_at(self, time: float, error: BaseException | None) -> None:
        """Let those go on who wait."""
        self._time, self._error = time, error
        self._passed.set()


@dataclass(frozen=True)
class _Item:
    """What a thread of the host began at a virtual time; an event is never left out."""

    action: Action | SimEvent
    thread: int
    begun: float


class InOrder(Queue):
    """Does one thing after the other in a thread of its own, which lives as long as there is something to do.

    After a failure, what the same thread of the host had begun or begins is left undone until that thread synchronizes.
    """

    def __init__(self, name: str, clock: Clock) -> None:
        self._name, self._clock = name, clock
        self._items: deque[_Item] = deque()
        self._failed: dict[int, BaseException] = {}
        self._works = False
        self._lock = threading.Lock()

    def begin(self, action: Action) -> None:
        self._put(action)

    def record(self) -> Event:
        event = SimEvent(self._clock.host)
        self._put(event)
        return event

    def wait_for(self, event: Event) -> None:
        if isinstance(event, SimEvent):
            self._put(lambda: self._clock.reach(event.passed_at()))
        elif event is not PASSED:
            self._put(event.wait)

    def synchronize(self) -> None:
        try:
            self.record().wait()
        finally:
            self._failed.pop(threading.get_ident(), None)

    def drop(self, thread: int) -> None:
        with self._lock:
            if any(item.thread == thread and not isinstance(item.action, SimEvent) for item in self._items):
                self._failed.setdefault(thread, Cancelled(f"[{self._name}] the run was cancelled, its work dropped"))

    def _put(self, action: Action | SimEvent) -> None:
        with self._lock:
            self._items.append(_Item(action, threading.get_ident(), self._clock.host.now))
            if not self._works:
                self._works = True
                threading.Thread(target=self._work, name=f"queue of {self._name}", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._items:
                    self._works = False
                    return
                item = self._items.popleft()
            self._do(item)

    def _do(self, item: _Item) -> None:
        if isinstance(item.action, SimEvent):
            item.action.pass_at(self._clock.now, self._failed.get(item.thread))
        elif item.thread not in self._failed:
            self._clock.reach(item.begun)
            try:
                item.action()
            except BaseException as error:  # the thread of the host that began it raises it when it waits
                self._failed[item.thread] = error
