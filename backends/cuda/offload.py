"""From which batch on it pays to bring a weight to the device: measured once for each machine and dtype, kept on disk.

A product of n rows takes the CPU's kernels seconds(n), for each byte of the weight; bringing the weight over takes one
byte's time on the link. The break-even is the least n at which the CPU is slower: the device's own time is left out, as
it is a hundredth of the link's.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

import graphrt
from graphrt.backend import create
from graphrt.backends.cuda import CudaBackend
from graphrt.buffer import Location
from graphrt.dtypes import DType
from graphrt.kept import Kept
from graphrt.settings import Settings
from graphrt.testing import Draw

ROWS, WIDTH = 1024, 2048  # of the weight that is measured; a multiple of every block
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
LINK_BYTES = 64 << 20
REPEATS = 3


class BreakEven:
    """The least batch for each dtype of the weight.

    Args:
        settings: of the CPU backend that would compute otherwise.
        backend: of the device that weights would be brought to.
    """

    def __init__(self, settings: Settings, backend: CudaBackend) -> None:
        self._settings, self._backend = settings, backend
        device = backend.device
        machine = f"{device.name} {device.architecture} threads {settings.thread_count}"
        self._kept = Kept("offload.json", machine, f"graphrt {graphrt.__version__} {create('cpu', settings).version}")
        self._known: dict[str, int] = {}

    def least_batch(self, dtype: DType) -> int:
        """The batch from which on the link is faster than the CPU's kernels; BATCHES' last one twice if at none."""
        if dtype.name not in self._known:
            least = self._kept.get(dtype.name)
            if not isinstance(least, int):
                least = break_even(self._link_rate(), lambda batch: self._cpu_rate(dtype, batch))
                self._kept.put(dtype.name, least)
            self._known[dtype.name] = least
        return self._known[dtype.name]

    def _link_rate(self) -> float:
        """Bytes per second from the host's memory to the device's, on the way that offloaded weights take."""
        rate = self._kept.get("link")
        if isinstance(rate, float):
            return rate
        data = np.ones(LINK_BYTES, np.uint8)
        buffer, queue = self._backend.allocate(data.nbytes), self._backend.copy_queue

        def upload() -> None:
            queue.begin_writes([(Location(buffer, 0), data)], "the link's measurement")
            queue.synchronize()

        rate = data.nbytes / _least_seconds(upload)
        self._kept.put("link", rate)
        return rate

    def _cpu_rate(self, dtype: DType, batch: int) -> float:
        """Bytes of the weight per second in a product of so many rows."""
        generator = np.random.default_rng(0)
        draw = Draw(lambda low, high: int(generator.integers(low, high + 1)))
        w = draw.tensor((ROWS, WIDTH), dtype, layout="dense")
        x = draw.tensor((batch, WIDTH), graphrt.dtypes.f32, layout="dense")
        plan = graphrt.Scheduler(["cpu"], threads=self._settings.threads).plan(graphrt.Graph(graphrt.ops.mul_mat(w, x)))
        return w.nbytes / _least_seconds(plan.execute)


def break_even(link: float, cpu: Callable[[int], float]) -> int:
    """The least of BATCHES at which the CPU takes fewer bytes of the weight per second than the link."""
    return next((batch for batch in BATCHES if cpu(batch) < link), 2 * BATCHES[-1])


def _least_seconds(run: Callable[[], object]) -> float:
    run()
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return max(min(found), 1e-9)
