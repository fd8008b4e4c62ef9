"""Events and the asynchronous pretend device: order, waiting, failures, and threads that end with the work."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest

from graphrt import Cancelled, KernelError, Settings
from graphrt.backend import create
from graphrt.backends.sim import Host, SimBackend
from graphrt.buffer import HostBuffer
from graphrt.events import PASSED

ONES = np.ones(8, np.uint8)


class Gate:
    """Work that a device does not finish until it is opened."""

    def __init__(self, device: SimBackend) -> None:
        self._open, self._reached = threading.Event(), threading.Event()
        device._queue.begin(self._hold)
        self._reached.wait()

    def _hold(self) -> None:
        self._reached.set()
        self._open.wait()

    def open(self) -> None:
        self._open.set()


@pytest.mark.parametrize("name", ["cpu", "reference", "blas", "sim"])
def test_on_a_synchronous_backend_every_event_has_passed(name):
    backend = create(name, Settings.from_env({}, threads=1))
    assert not backend.asynchronous
    assert backend.record() is PASSED
    backend.wait_for(PASSED)
    backend.drop(threading.get_ident())
    backend.synchronize()


def test_copies_are_begun_at_once_and_done_in_order():
    device, into = SimBackend(asynchronous=True), np.zeros(8, np.uint8)
    buffer, gate = device.allocate(8), Gate(device)
    buffer.begin_write(0, ONES, "ones")
    buffer.begin_read(0, into, "ones back")
    buffer.begin_write(0, 2 * ONES, "twos")
    event = device.record()
    assert not into.any()
    gate.open()
    event.wait()
    assert np.array_equal(into, ONES)
    assert np.array_equal(buffer.read(0, 8), 2 * ONES)


def test_what_is_written_may_change_as_soon_as_write_returns():
    device, data = SimBackend(asynchronous=True), ONES.copy()
    buffer, gate = device.allocate(8), Gate(device)
    buffer.write(0, data)
    data[:] = 0
    gate.open()
    assert np.array_equal(buffer.read(0, 8), ONES)


def test_a_device_waits_for_another_without_blocking_the_host():
    first, second = SimBackend("first", asynchronous=True), SimBackend("second", asynchronous=True)
    staging = np.zeros(8, np.uint8)
    source, target, gate = first.allocate(8), second.allocate(8), Gate(first)
    source.begin_write(0, ONES, "in")
    source.begin_read(0, staging, "between")
    second.wait_for(first.record())
    target.begin_write(0, staging, "between")
    gate.open()
    assert np.array_equal(target.read(0, 8), ONES)


def test_a_synchronous_device_waits_on_the_host():
    first, second = SimBackend("first", asynchronous=True), SimBackend("second")
    first.allocate(8).begin_write(0, ONES, "in")
    second.wait_for(first.record())
    assert first.clock.count["upload"] == 1


def test_a_failure_raises_where_it_is_waited_for_and_the_rest_is_left_undone():
    device = SimBackend(asynchronous=True)
    buffer = device.allocate(8)
    device.failures.copy = 2
    before = device.record()
    for number in range(4):
        buffer.begin_write(0, number * ONES, f"copy {number}")
    after = device.record()
    before.wait()
    with pytest.raises(KernelError, match=r"\[copy\] copy 1 failed: a failure on demand"):
        after.wait()
    with pytest.raises(KernelError, match=r"\[copy\] copy 1 failed: a failure on demand"):
        device.synchronize()
    assert device.clock.count["upload"] == 1
    buffer.write(0, 5 * ONES)
    assert np.array_equal(buffer.read(0, 8), 5 * ONES)


def test_who_waits_for_a_device_that_failed_fails_too():
    first, second = SimBackend("first", asynchronous=True, fail_copy=1), SimBackend("second", asynchronous=True)
    target, gate = second.allocate(8), Gate(first)
    first.allocate(8).begin_write(0, ONES, "in")
    second.wait_for(first.record())
    target.begin_write(0, ONES, "on")
    gate.open()
    with pytest.raises(KernelError, match=r"\[copy\] in failed"):
        second.synchronize()
    assert second.clock.count["upload"] == 0
    target.begin_write(0, ONES, "again")
    second.synchronize()


def test_what_is_dropped_raises_cancelled_and_only_for_the_thread_that_began_it():
    device = SimBackend(asynchronous=True)
    buffer, gate, events = device.allocate(8), Gate(device), []

    def begin(label: str) -> None:
        buffer.begin_write(0, ONES, label)
        events.append(device.record())

    other = threading.Thread(target=begin, args=["theirs"])
    other.start()
    other.join()
    begin("mine")
    device.drop(threading.get_ident())
    gate.open()
    with pytest.raises(Cancelled, match=r"\[sim\] the run was cancelled, its work dropped"):
        device.synchronize()
    events[0].wait()
    assert device.clock.count["upload"] == 1


def test_dropping_nothing_does_nothing():
    device = SimBackend(asynchronous=True)
    device.drop(threading.get_ident())
    buffer = device.allocate(8)
    buffer.begin_write(0, ONES, "ones")
    device.synchronize()


def test_virtual_time_of_the_host_and_of_two_devices():
    """1,000 bytes a second: uploads of 8 ms side by side, then one that waits for the other device."""
    host = Host()
    first, second = (SimBackend(name, asynchronous=True, link=1e3, host=host) for name in ("first", "second"))
    one, other = first.allocate(16), second.allocate(8)
    one.begin_write(0, np.ones(16, np.uint8), "16 ms")
    other.begin_write(0, ONES, "8 ms")
    assert host.now == 0
    second.synchronize()
    assert host.now == pytest.approx(0.008)
    second.wait_for(first.record())
    other.begin_write(0, ONES, "8 ms after the 16")
    second.synchronize()
    assert host.now == second.clock.now == pytest.approx(0.024)
    first.synchronize()
    assert host.now == pytest.approx(0.024)
    one.begin_write(0, ONES, "begun when the host was at 24 ms")
    first.synchronize()
    assert first.clock.now == pytest.approx(0.032)
    assert first.clock.total == pytest.approx(0.024)


def test_buffers_of_the_host_and_of_older_backends_copy_at_once_and_name_what_fails():
    buffer, into = HostBuffer.allocate(8), np.zeros(8, np.uint8)
    buffer.begin_write(0, ONES, "in")
    buffer.begin_read(0, into, "out")
    assert np.array_equal(into, ONES)
    with pytest.raises(KernelError, match=r"\[copy\] too much failed: "):
        buffer.begin_write(4, ONES, "too much")


def test_a_device_that_is_dropped_leaves_no_thread():
    device = SimBackend("gone", asynchronous=True)
    device.allocate(8).write(0, ONES)
    device.synchronize()
    gone = weakref.ref(device)
    del device
    gc.collect()
    assert gone() is None
    for thread in threading.enumerate():
        if thread.name == "queue of gone":
            thread.join(5)
            assert not thread.is_alive()
