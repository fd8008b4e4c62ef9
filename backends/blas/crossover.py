"""From which batch on BLAS beats the CPU kernels: measured once for each machine and dtype, then kept on disk."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from functools import cached_property

import numpy as np

import graphrt
from graphrt.backend import Backend, create
from graphrt.backends.blas.rounds import LOSSES, Round, blas_pays, take_turns
from graphrt.dtypes import DType
from graphrt.kept import Kept
from graphrt.plan import Plan
from graphrt.scheduler import Scheduler
from graphrt.settings import Settings
from graphrt.tensor import Tensor
from graphrt.testing import Draw

ROWS, WIDTH = 1024, 2048  # of the weight that is measured; a multiple of every block
BATCHES = (512, 256, 128, 64, 32)
SECONDS = 2.0  # for one dtype, about
BLAS_VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "OPENBLAS_THREAD_TIMEOUT",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "KMP_BLOCKTIME",
)


class Crossover:
    """The least batch for each dtype of the weight.

    Args:
        settings: of the CPU backend to compare with.
        blas: makes a backend that takes every product.
    """

    def __init__(self, settings: Settings, blas: Callable[[], Backend]) -> None:
        self._settings, self._blas = settings, blas
        self._known: dict[str, int | None] = {}

    def least_batch(self, dtype: DType) -> int | None:
        """The batch from which on BLAS measured faster with such a weight; None if at none."""
        if dtype.name not in self._known:
            least = self._kept.get(dtype.name, default="unknown")
            if least is not None and not isinstance(least, int):
                least = self._measure(dtype)
                self._kept.put(dtype.name, least)
            self._known[dtype.name] = least
        return self._known[dtype.name]

    @cached_property
    def _kept(self) -> Kept:
        blas = " ".join(f"{name}={os.environ[name]}" for name in BLAS_VARIABLES if os.environ.get(name))
        machine = f"{platform.node()} {platform.machine()} cpu {self._settings.thread_count} blas {blas}"
        kernels = create("cpu", self._settings).version
        return Kept("blas.json", machine, f"graphrt {graphrt.__version__} {kernels} numpy {np.__version__}")

    def _measure(self, dtype: DType) -> int | None:
        """Go down from the largest batch for as long as BLAS is faster."""
        least, until = None, time.perf_counter() + SECONDS
        for batch in BATCHES:
            if not blas_pays(self.rounds(dtype, batch, until)):
                break
            least = batch
        return least

    def rounds(self, dtype: DType, batch: int, until: float, losses: int = LOSSES) -> list[Round]:
        """Both ways of multiplying ROWS x WIDTH weights with so many rows, timed as take_turns does."""
        weight = Draw(lambda low, high: low).tensor((ROWS, WIDTH), dtype, layout="dense")
        mixed, kernels = (self._two_products(backend, weight, batch) for backend in (self._blas(), "cpu"))
        return take_turns(mixed.execute, kernels.execute, until=until, losses=losses)

    def _two_products(self, backend: Backend | str, weight: Tensor, batch: int) -> Plan:
        """A product on a backend, then the same by the CPU kernels."""
        x = graphrt.input("x", (batch, WIDTH))
        first, second = graphrt.ops.mul_mat(weight, x), graphrt.ops.mul_mat(weight, x)
        scheduler = Scheduler([backend, "cpu"], overrides=(), threads=self._settings.threads, sched_debug=0)
        return scheduler.plan(graphrt.Graph((first, second)), assigned={second: "cpu"})
