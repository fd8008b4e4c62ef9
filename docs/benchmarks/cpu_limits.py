"""What the machine can do at the moment: reading memory, and multiplying in registers; measured again and again.

On a machine that others use too both move from second to second, so that every figure has a limit measured beside it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from math import inf

import numpy as np

from graphrt.backends.cpu import jit, peaks, threads
from graphrt.backends.cpu.bench import MEMORY, read_memory

BANDWIDTH = "bandwidth"
KINDS = (BANDWIDTH, "int8", "bf16", "f32")
RUNS = 5


class Limits:
    """Measures limits with so many threads; bytes or operations a second."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._memory, self._result = np.ones(MEMORY // 4, np.float32), np.zeros(16 * size, np.float32)
        self._pool = threads.pool(size)
        addresses = (self._memory.ctypes.data, MEMORY, self._pool.counter_address, self._result.ctypes.data)
        self._words = np.array(addresses, np.int64)
        self._calls = np.array([jit.native(read_memory).address, self._words.ctypes.data], np.int64)

    def measure(self, kinds: Iterable[str]) -> dict[str, float]:
        """The present limits of the kinds; "f32" stands in for one that the processor has no instruction for."""
        found = {}
        for kind in kinds:
            rate = self.bandwidth() if kind == BANDWIDTH else peaks.peak(kind, self.size, RUNS)
            found[kind] = peaks.peak("f32", self.size, RUNS) if rate is None else rate
        return found

    def bandwidth(self, runs: int = RUNS) -> float:
        """Bytes a second of only reading memory, the best of several runs."""
        best = inf
        for _ in range(runs):
            start = time.perf_counter()
            self._pool.run(self._calls.ctypes.data, 1)
            best = min(best, time.perf_counter() - start)
        return MEMORY / best


def least_seconds(limits: Mapping[str, float], work: Mapping[str, float]) -> float:
    """The least time for bytes and operations: reading and computing at their limits, side by side."""
    seconds = {kind: amount / limits[kind] for kind, amount in work.items()}
    reading = seconds.pop(BANDWIDTH, 0.0)
    return max(reading, sum(seconds.values()))
