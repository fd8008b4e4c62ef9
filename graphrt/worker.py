"""A worker: does what threads of the host begin, one thing after the other, while they go on."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from graphrt.errors import Cancelled
from graphrt.events import Event

Action = Callable[[], None]


class Mark(Event):
    """A point in a worker's work."""

    def __init__(self) -> None:
        self._error: BaseException | None = None
        self._reached = threading.Event()

    def wait(self) -> None:
        self._reached.wait()
        if self._error is not None:
            raise self._error

    def reach(self, error: BaseException | None) -> None:
        """Let those go on who wait; the worker calls it, with what the work before failed with."""
        self._error = error
        self._reached.set()


@dataclass(frozen=True)
class _Item:
    """What a thread of the host began; a mark is never left out."""

    action: Action | Mark
    thread: int


class Worker:
    """Works in a thread of its own, which lives as long as there is something to do.

    After a failure, what the same thread of the host had begun or begins is left undone until that thread synchronizes.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._items: deque[_Item] = deque()
        self._failed: dict[int, BaseException] = {}
        self._works = False
        self._lock = threading.Lock()

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to wait for, nor to be told of, for the calling thread."""
        with self._lock:
            return not self._works and threading.get_ident() not in self._failed

    def begin(self, action: Action) -> None:
        """Have something done after all that was begun before."""
        self._put(action)

    def record(self) -> Event:
        """The point after everything begun so far."""
        return self.put_mark(Mark())

    def put_mark(self, mark: Mark) -> Mark:
        """Have a mark reached after all that was begun before."""
        self._put(mark)
        return mark

    def synchronize(self) -> None:
        """Wait until everything is done.

        Raises: what the calling thread's work failed with, which is then forgotten.
        """
        try:
            self.record().wait()
        finally:
            self._failed.pop(threading.get_ident(), None)

    def drop(self, thread: int) -> None:
        """Leave undone what a thread has begun and the worker has not; it raises Cancelled."""
        with self._lock:
            if any(item.thread == thread and not isinstance(item.action, Mark) for item in self._items):
                self._failed.setdefault(thread, Cancelled(f"[{self._name}] the run was cancelled, its work dropped"))

    def _put(self, action: Action | Mark) -> None:
        with self._lock:
            self._items.append(_Item(action, threading.get_ident()))
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
        if isinstance(item.action, Mark):
            item.action.reach(self._failed.get(item.thread))
        elif item.thread not in self._failed:
            try:
                item.action()
            except BaseException as error:  # the thread of the host that began it raises it when it waits
                self._failed[item.thread] = error
