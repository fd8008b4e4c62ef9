"""The pool of threads where cores are scarce: one thread more than cores, and another process that takes one."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from graphrt.backends.cpu import jit, threads
from graphrt.backends.cpu.args import claim, word
from graphrt.backends.cpu.sync import atomic_store

ITEMS = 64
CALLS = 200


def share_items():
    """Native, called with three words: claim items from a counter; each reads memory so many times."""

    def run(words, ith, nth):
        memory = word(words, 1)
        while claim(word(words, 0), 1) < ITEMS:
            total = 0
            for i in range(word(words, 2)):
                total = (3 * total + i) ^ word(memory, 0)
            if total == 12345:  # so that the loop is not left out
                return

    return run


def work_alone():
    """Native: as share_items, but the first thread does it all."""

    def run(words, ith, nth):
        if ith == 0:
            memory, total = word(words, 1), 0
            for i in range(word(words, 2)):
                total = (3 * total + i) ^ word(memory, 0)
            atomic_store(memory, total)

    return run


class Work:
    """CALLS calls with a barrier after each, on some threads; one thread takes about so many microseconds for each."""

    def __init__(self, size: int, microseconds: int) -> None:
        self.pool = threads.pool(size)
        self._memory = np.ones(8, np.int64)
        self._words = np.array([self.pool.counter_address, self._memory.ctypes.data, 20 * microseconds], np.int64)
        function = jit.native(share_items).address
        self._calls = np.array([[function, self._words.ctypes.data]] * CALLS, np.int64)
        self.seconds()

    def seconds(self) -> float:
        start = time.perf_counter()
        self.pool.run(self._calls.ctypes.data, CALLS)
        return time.perf_counter() - start


def is_soon_within(most: float, first: Work, second: Work) -> bool:
    """Whether the second's least time is within so many times the first's, in one of a few tries in turns."""
    for _ in range(4):
        pairs = [(first.seconds(), second.seconds()) for _ in range(15)]
        least_first, least_second = map(min, zip(*pairs, strict=True))
        if least_second < most * least_first:
            return True
    return False


@pytest.fixture
def quiet():
    """A machine that has cores for these tests' threads, more or less."""
    if not hasattr(os, "getloadavg") or os.getloadavg()[0] > 2 * threads.available_cores():
        pytest.skip("this machine is too busy to tell how threads get on")


@pytest.fixture
def rival(quiet):
    """Another process that never rests."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        yield
        process.kill()


def test_one_thread_more_than_cores_takes_hardly_longer(quiet):
    cores = threads.available_cores()
    assert is_soon_within(1.5, Work(cores, 50), Work(cores + 1, 50))


def test_a_busy_core_does_not_stall_the_others(rival):
    """Threads that wait for one that has no core at present leave it theirs: else each barrier takes milliseconds."""
    assert is_soon_within(10, Work(1, 20), Work(threads.available_cores() + 1, 20))


def test_a_thread_that_waits_long_uses_no_processor_time():
    """One of two threads works; what the process uses is about what that thread does."""
    pool, memory = threads.pool(2), np.ones(1, np.int64)
    words = np.array([pool.counter_address, memory.ctypes.data, 100_000_000], np.int64)
    calls = np.array([[jit.native(work_alone).address, words.ctypes.data]], np.int64)
    before, mine = time.process_time(), time.thread_time()
    pool.run(calls.ctypes.data, 1)
    used, worked = time.process_time() - before, time.thread_time() - mine
    assert worked > 0.05
    assert used < 1.1 * worked + 0.005
