"""Weights brought to a device beside its kernels: through pinned memory, in a stream of their own.

Weights lie in memory that the device cannot read itself (a mapped file, NumPy's arrays). Threads of the host copy them
piece by piece into a ring of pinned blocks, from which the device fetches them: the link is then as fast as it can be,
and reading the file, copying and fetching go on at once.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from graphrt.backends.cuda.device import Device, Stream
from graphrt.backends.cuda.memory import address_of
from graphrt.buffer import failed_copy
from graphrt.copy_queue import CopyQueue, Part
from graphrt.dtypes import Array
from graphrt.events import PASSED, Event
from graphrt.worker import Mark, Worker

BLOCK = 4 << 20  # bytes: long enough for the link's full speed
BLOCKS = 6
THREADS = 4  # that copy into blocks; one alone is slower than the link of a server


class Arrival(Mark):
    """A point in the copies: `event` is the one in their stream, once they are begun."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._stream = stream
        self._event: Event = PASSED

    @property
    def event(self) -> Event:
        """The event, for which the host waits until it is recorded.

        Raises: what failed before it.
        """
        super().wait()
        return self._event

    def wait(self) -> None:
        self.event.wait()

    def reach(self, error: BaseException | None) -> None:
        try:
            self._event = self._stream.record()
        except Exception as failure:
            error = error or failure
        super().reach(error)


@dataclass
class _Block:
    """A block of pinned memory; it is free when the event has passed."""

    memory: Array
    fetched: Event = PASSED


@dataclass(frozen=True)
class _Piece:
    """Bytes on their way into a block, and the address on the device where they belong."""

    address: int
    waiting: Array
    block: _Block
    filled: Future[None]


class Copies(CopyQueue):
    """The copy queue of a device."""

    def __init__(self, device: Device, name: str) -> None:
        self._device, self._stream = device, device.stream()
        self._worker = Worker(f"copies to {name}")
        self._may_be_under_way = False  # copies that the device is still fetching, when the worker is long done

    def begin_writes(self, parts: Sequence[Part], label: str) -> None:
        self._may_be_under_way = True
        there = [(address_of(target), data) for target, data in parts]
        self._worker.begin(lambda: self._send(there, label))

    def record(self) -> Arrival:
        arrival = Arrival(self._stream)
        self._worker.put_mark(arrival)
        return arrival

    def wait_for(self, event: Event) -> None:
        self._worker.begin(lambda: self._stream.wait_for(event))

    def synchronize(self) -> None:
        """Wait until everything is done.

        Raises: what the calling thread's copies failed with.
        """
        if self._worker.is_idle and not self._may_be_under_way:  # as in every step of decoding
            return
        self._may_be_under_way = False
        try:
            self._worker.synchronize()
        finally:
            self._stream.synchronize()

    def drop(self, thread: int) -> None:
        """Leave undone what a thread has begun and nobody has taken up."""
        self._worker.drop(thread)

    # ---- what the worker does ----------------------------------------------------------------------------------------

    @cached_property
    def _blocks(self) -> deque[_Block]:
        """The ring, the block that was used longest ago first."""
        return deque(_Block(self._device.pinned(BLOCK)) for _ in range(BLOCKS))

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), "graphrt-copies")

    def _send(self, parts: Sequence[tuple[int, Array]], label: str) -> None:
        """Bring bytes to the device; the device may still be fetching them afterwards."""
        filling: deque[_Piece] = deque()
        try:
            for address, data in parts:
                for start in range(0, data.nbytes, BLOCK):
                    if len(filling) == BLOCKS:
                        self._fetch(filling.popleft())
                    filling.append(self._fill(address + start, data[start : start + BLOCK]))
            while filling:
                self._fetch(filling.popleft())
        except Exception as error:
            wait([piece.filled for piece in filling])
            raise failed_copy(label, error) from error

    def _fill(self, address: int, data: Array) -> _Piece:
        block = self._blocks[0]
        self._blocks.rotate(-1)
        block.fetched.wait()
        waiting = block.memory[: data.nbytes]
        return _Piece(address, waiting, block, self._threads.submit(np.copyto, waiting, data))

    def _fetch(self, piece: _Piece) -> None:
        piece.filled.result()
        self._stream.upload(piece.address, piece.waiting)
        piece.block.fetched = self._stream.record()
