"""Copies beside kernels: every byte arrives, whatever the device's own copying is late by, and failures are told."""

from __future__ import annotations

import ctypes
import threading
import time

import numpy as np
import pytest

from graphrt import Cancelled, KernelError
from graphrt.backends.cuda import CudaBackend
from graphrt.backends.cuda.copies import BLOCK, BLOCKS
from graphrt.backends.cuda.device import Stream
from graphrt.backends.cuda.shim_device import ShimDevice
from graphrt.buffer import Location
from graphrt.events import PASSED, Event


class LateStream(Stream):
    """Copies as late as it may: what was begun is done only when an event after it is waited for.

    Args:
        failing: number of the upload that fails, counted from 1.
    """

    def __init__(self, failing: int = 0) -> None:
        self.begun: list[tuple[int, np.ndarray]] = []
        self.uploads, self.failing = 0, failing

    def upload(self, address: int, data: np.ndarray) -> None:
        self.uploads += 1
        if self.uploads == self.failing:
            raise KernelError("[cuda] a copy on the shim failed: on demand")
        self.begun.append((address, data))

    def record(self) -> Event:
        return _Late(self, len(self.begun))

    def wait_for(self, event: Event) -> None:
        event.wait()

    def synchronize(self) -> None:
        self.do(len(self.begun))

    def do(self, count: int) -> None:
        """Do the first copies, so many of all that were ever begun."""
        for number, (address, data) in enumerate(self.begun[:count]):
            if address:
                ctypes.memmove(address, data.ctypes.data, data.nbytes)
                self.begun[number] = (0, data)


class _Late(Event):
    def __init__(self, stream: LateStream, count: int) -> None:
        self.stream, self.count = stream, count

    def wait(self) -> None:
        self.stream.do(self.count)


class LateDevice(ShimDevice):
    """A shim whose streams for copies are late."""

    failing = 0

    def stream(self) -> Stream:
        return LateStream(self.failing)


SIZES = [(1,), (0, 5), (BLOCK - 1, 3), (7 * BLOCK + 13,), (BLOCK, 1, 2 * BLOCK, BLOCK + 1) * 4]


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: f"{len(sizes)} parts, {sum(sizes)} bytes")
def test_every_byte_arrives_where_it_belongs(sizes):
    backend = CudaBackend(LateDevice())
    data = [np.random.default_rng(i).integers(0, 256, size, np.uint8) for i, size in enumerate(sizes)]
    places = np.cumsum([0, *(size + 64 for size in sizes)])
    buffer = backend.allocate(int(places[-1]))
    parts = [(Location(buffer, int(place)), each) for place, each in zip(places, data, strict=False)]
    backend.copy_queue.begin_writes(parts, "a weight")
    backend.copy_queue.record().wait()
    for place, each in zip(places, data, strict=False):
        assert np.array_equal(buffer.read(int(place), each.nbytes), each)
        assert not buffer.read(int(place) + each.nbytes, 64).any()


def test_the_device_waits_for_what_was_begun_before_the_event():
    backend, data = CudaBackend(LateDevice()), np.arange(3 * BLOCK, dtype=np.uint32).view(np.uint8)
    buffer = backend.allocate(data.nbytes)
    backend.copy_queue.begin_writes([(Location(buffer, 0), data)], "a weight")
    backend.wait_for(backend.copy_queue.record())
    assert np.array_equal(buffer.read(0, data.nbytes), data)


def test_nothing_is_under_way_after_a_wait_for_everything():
    """After a cancelled run the device may still be fetching what the host's worker has long begun."""
    backend, data = CudaBackend(LateDevice()), np.arange(BLOCK, dtype=np.uint32).view(np.uint8)
    buffer = backend.allocate(data.nbytes)
    backend.copy_queue.begin_writes([(Location(buffer, 0), data)], "a weight")
    assert backend.copy_queue.record().event is not PASSED
    while not backend.copy_queue._worker.is_idle:
        time.sleep(0.0001)
    backend.drop(threading.get_ident())
    backend.synchronize()
    assert np.array_equal(buffer.read(0, data.nbytes), data)


def test_no_more_blocks_are_pinned_than_there_are_in_the_ring(monkeypatch):
    pinned: list[int] = []
    monkeypatch.setattr(LateDevice, "pinned", lambda self, nbytes: pinned.append(nbytes) or np.zeros(nbytes, np.uint8))
    backend, data = CudaBackend(LateDevice()), np.ones(20 * BLOCK, np.uint8)
    assert not pinned, "nothing was copied yet"
    buffer = backend.allocate(data.nbytes)
    for _ in range(2):
        backend.copy_queue.begin_writes([(Location(buffer, 0), data)], "a weight")
        backend.copy_queue.record().wait()
    assert pinned == [BLOCK] * BLOCKS


def test_a_failure_names_the_copy_and_is_told_once(monkeypatch):
    monkeypatch.setattr(LateDevice, "failing", 4)
    backend, data = CudaBackend(LateDevice()), np.ones(9 * BLOCK, np.uint8)
    buffer = backend.allocate(data.nbytes)
    backend.copy_queue.begin_writes([(Location(buffer, 0), data)], "blk.0.w from host to cuda")
    with pytest.raises(KernelError, match=r"\[copy\] blk\.0\.w from host to cuda failed: .* on demand"):
        backend.wait_for(backend.copy_queue.record())
    with pytest.raises(KernelError, match="on demand"):
        backend.synchronize()
    backend.copy_queue.begin_writes([(Location(buffer, 0), data)], "blk.0.w from host to cuda")
    backend.copy_queue.record().wait()
    assert buffer.read(0, data.nbytes).all()


def test_no_pinned_memory_is_an_error_that_says_so(monkeypatch):
    def refuse(self, nbytes):
        raise MemoryError(f"no room for {nbytes:,} bytes of pinned memory on the host")

    monkeypatch.setattr(LateDevice, "pinned", refuse)
    backend = CudaBackend(LateDevice())
    backend.copy_queue.begin_writes([(Location(backend.allocate(8), 0), np.ones(8, np.uint8))], "w from host to cuda")
    with pytest.raises(KernelError, match=r"w from host to cuda failed: no room for 4,194,304 bytes of pinned memory"):
        backend.copy_queue.record().wait()


def test_what_a_cancelled_thread_has_begun_is_dropped_and_nothing_of_it_comes_later():
    backend, release = CudaBackend(LateDevice()), threading.Event()
    buffer = backend.allocate(BLOCK)
    backend.copy_queue._worker.begin(release.wait)
    backend.copy_queue.begin_writes([(Location(buffer, 0), np.ones(BLOCK, np.uint8))], "a weight")
    backend.drop(threading.get_ident())
    release.set()
    with pytest.raises(Cancelled):
        backend.synchronize()
    backend.copy_queue.begin_writes([(Location(buffer, 0), np.full(1, 2, np.uint8))], "a weight")
    backend.synchronize()
    assert buffer.read(0, 2).tolist() == [2, 0]


def test_a_run_without_such_copies_starts_no_thread():
    backend = CudaBackend(LateDevice())
    before = threading.active_count()
    for _ in range(3):
        backend.synchronize()
    assert threading.active_count() == before
    assert backend.record() is PASSED
