"""The thread pool: Python threads that run native programs together, without the GIL.

Workers wait for the next run natively: busy for a moment, then yielding, and then they park on a lock in Python, so
that an idle process takes no processor time. All threads of a run walk the same list of calls; a barrier follows each.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading

import numpy as np

from graphrt.backends.cpu.args import word
from graphrt.backends.cpu.barriers import ALL
from graphrt.backends.cpu.host import available_cores
from graphrt.backends.cpu.jit import Kernel, Native, native
from graphrt.backends.cpu.sync import (
    atomic_add,
    atomic_exchange_if,
    atomic_load,
    atomic_store,
    barrier,
    call_native,
    wait_once,
)

# Words of a pool's shared memory, a cache line (8 words) apart where threads write them.
ARRIVED, PHASE, COUNTER, GENERATION = 0, 8, 16, 24
CALLS, COUNT, SIZE, SPINS, STOP, TURNS = 32, 33, 34, 35, 36, 37
TO_WAKE, WORKERS = 40, 48
WORKER_WORDS = 8  # per worker: its state, and the last generation it saw
AWAKE, PARKED = 0, 1

SPINS_WITH_CORES, SPINS_WITHOUT = 200, 20
YIELDS_BEFORE_PARKING = 2000  # about a millisecond: the pause between two tokens

_C_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


def walk_program() -> Kernel:
    """Native: run the published calls as thread `ith` of `nth`.

    Turns are three words a call: the thread that does it alone, or ALL; its counter; whether a barrier follows. A
    counter is 0 again when its next call starts: one thread's is cleared after each call, those of all threads serve in
    two banks by turns, of which one is cleared after the barrier that ends its calls.
    """

    def walk(pool, ith, nth):
        calls, spins, turns = word(pool, CALLS), word(pool, SPINS), word(pool, TURNS)
        first = 0
        for i in range(word(pool, COUNT)):
            turn = turns + 24 * i
            thread, followed = ALL, 1
            if turns:
                thread, followed = word(turn, 0), word(turn, 2)
            if thread == ALL:
                call_native(word(calls, 2 * i), word(calls, 2 * i + 1), ith, nth)
            elif thread == ith:
                call_native(word(calls, 2 * i), word(calls, 2 * i + 1), 0, 1)
                atomic_store(word(turn, 1), 0)
            if followed:
                barrier(pool + 8 * ARRIVED, pool + 8 * PHASE, pool + 8 * COUNTER, nth, spins)
                if turns and ith == 0:
                    for j in range(first, i + 1):
                        atomic_store(word(turns, 3 * j + 1), 0)
                first = i + 1

    return walk


def start_program() -> Kernel:
    """Native: publish a run; if every worker is awake, take part in it, else leave the parked ones' bits in TO_WAKE."""

    def start(pool, walk, nth):
        atomic_store(pool + 8 * TO_WAKE, 0)
        atomic_add(pool + 8 * GENERATION, 1)
        parked = 0
        for ith in range(1, nth):
            if atomic_exchange_if(pool + 8 * (WORKERS + WORKER_WORDS * ith), PARKED, AWAKE):
                atomic_store(pool + 8 * (WORKERS + WORKER_WORDS * ith + 2), 1)
                parked += 1
        if parked > 0:
            atomic_store(pool + 8 * TO_WAKE, parked)
        else:
            call_native(walk, pool, 0, nth)

    return start


def serve_runs() -> Kernel:
    """Native: take part in runs as worker `ith`, until none came for a while (parked) or the pool stops."""

    def serve(pool, walk, ith):
        state = pool + 8 * (WORKERS + WORKER_WORDS * ith)
        spins = word(pool, SPINS)
        tries = 0
        while True:
            generation = atomic_load(pool + 8 * GENERATION)
            if generation != word(state, 1):
                atomic_store(state + 8, generation)
                if word(pool, STOP):
                    return
                call_native(walk, pool, ith, word(pool, SIZE))
                tries = 0
            elif tries < spins + YIELDS_BEFORE_PARKING:
                wait_once(tries, spins)
                tries += 1
            else:
                atomic_store(state, PARKED)
                # A run published in between either saw PARKED, and will wake this worker, or is seen here.
                if atomic_load(pool + 8 * GENERATION) == word(state, 1) or not atomic_exchange_if(state, PARKED, AWAKE):
                    return

    return serve


def functions() -> list[Native]:
    """What every pool needs."""
    return [native(factory) for factory in (walk_program, start_program, serve_runs)]


class Pool:
    """`size` threads, the caller's among them. One run at a time; a second caller waits for the first."""

    def __init__(self, size: int) -> None:
        self.size = size
        words = WORKERS + WORKER_WORDS * size + 8
        raw = np.zeros(words, np.int64)
        self._shared = raw[-(raw.ctypes.data // 8) % 8 :]
        self.address: int = self._shared.ctypes.data
        walk, start, serve = functions()
        self._walk_address = walk.address
        self._walk, self._start, self._serve = (_C_FUNCTION(function.address) for function in (walk, start, serve))
        self._prepare()

    def _prepare(self) -> None:
        """Everything that a forked child must make anew; programs keep the shared memory's address."""
        self._lock = threading.Lock()
        self._shared[:] = 0
        self._shared[SIZE] = self.size
        self._shared[SPINS] = SPINS_WITH_CORES if self.size <= available_cores() else SPINS_WITHOUT
        self._gates = [threading.Semaphore(0) for _ in range(self.size)]
        self._workers: list[threading.Thread] = []

    @property
    def counter_address(self) -> int:
        """Address of the counter that kernels claim work from."""
        return self.address + 8 * COUNTER

    def run(self, calls: int, count: int, turns: int = 0) -> None:
        """Run `count` calls, (function, args) pairs of int64 at address `calls`, to the end.

        Args:
            turns: address of three words for each (see `walk_program`); without, all threads take part in every call
                and wait for each other after it.
        """
        with self._lock:
            shared = self._shared
            shared[CALLS], shared[COUNT], shared[TURNS] = calls, count, turns
            if self.size == 1:
                self._walk(self.address, 0, 1)
                return
            if not self._workers:
                self._start_workers()
            self._start(self.address, self._walk_address, self.size)
            if shared[TO_WAKE]:
                self._wake()
                self._walk(self.address, 0, self.size)

    def _start_workers(self) -> None:
        for ith in range(1, self.size):
            worker = threading.Thread(target=self._work, args=(ith,), name=f"graphrt-{ith}", daemon=True)
            self._workers.append(worker)
            worker.start()

    def _work(self, ith: int) -> None:
        gate = self._gates[ith]
        while not self._shared[STOP]:
            self._serve(self.address, self._walk_address, ith)
            if not self._shared[STOP]:
                gate.acquire()

    def _wake(self) -> None:
        for ith in range(1, self.size):
            flag = WORKERS + WORKER_WORDS * ith + 2
            if self._shared[flag]:
                self._shared[flag] = 0
                self._gates[ith].release()

    def close(self) -> None:
        """Stop the workers; the pool can run again, with new ones."""
        with self._lock:
            self._shared[STOP] = 1
            self._shared[GENERATION] += 1
            for gate in self._gates:
                gate.release()
            for worker in self._workers:
                worker.join()
        self._prepare()


_pools: dict[int, Pool] = {}
_pools_lock = threading.Lock()


def pool(size: int) -> Pool:
    """The process's pool of that many threads."""
    with _pools_lock:
        if size not in _pools:
            _pools[size] = Pool(size)
        return _pools[size]


def _after_fork() -> None:
    """In a child: no worker has come along, and locks may be held by threads that are not there."""
    global _pools_lock
    _pools_lock = threading.Lock()
    for each in _pools.values():
        each._prepare()


def _at_exit() -> None:
    for each in list(_pools.values()):
        each.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
