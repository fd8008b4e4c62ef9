"""The copy queue of a pretend device: uploads over its link, beside its programs on the virtual clock."""

from __future__ import annotations

from graphrt.backends.sim.memory import SimBuffer
from graphrt.backends.sim.queue import InOrder
from graphrt.buffer import Location
from graphrt.copy_queue import CopyQueue
from graphrt.dtypes import Array


class SimCopies(InOrder, CopyQueue):
    """Uploads in order, by a thread of their own."""

    def begin_write(self, target: Location, data: Array, label: str) -> None:
        assert isinstance(target.buffer, SimBuffer)
        target.buffer.begin_write_beside(self, self._clock, target.offset, data, label)
