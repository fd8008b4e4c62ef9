"""The copy queue of a pretend device: uploads over its link, beside its programs on the virtual clock."""

from __future__ import annotations

from collections.abc import Sequence

from graphrt.backends.sim.memory import SimBuffer
from graphrt.backends.sim.queue import InOrder
from graphrt.copy_queue import CopyQueue, Part


class SimCopies(InOrder, CopyQueue):
    """Uploads in order, by a thread of their own."""

    def begin_writes(self, parts: Sequence[Part], label: str) -> None:
        for target, data in parts:
            assert isinstance(target.buffer, SimBuffer)
            target.buffer.begin_write_beside(self, self._clock, target.offset, data, label)
