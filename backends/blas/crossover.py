"""From which batch on BLAS beats the CPU kernels: measured once for each machine and dtype, then kept on disk."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np

import graphrt
from graphrt.backend import Backend
from graphrt.backends.blas.rounds import LOSSES, Round, blas_pays, take_turns
from graphrt.backends.cpu.jit import cache_folder
from graphrt.dtypes import DType
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

    def least_batch(self, dtype: DType) -> int | None:
        """The batch from which on BLAS measured faster with such a weight; None if at none."""
        if dtype.name not in self._known:
            self._known[dtype.name] = self._measure(dtype)
            self._save()
        return self._known[dtype.name]

    @cached_property
    def _known(self) -> dict[str, int | None]:
        kept = self._kept().get(self._machine, {})
        return {name: least for name, least in kept.items() if least is None or isinstance(least, int)}

    def _kept(self) -> dict[str, dict[str, int | None]]:
        """What the file holds for each machine; nothing where it is absent or damaged."""
        with suppress(OSError, ValueError):
            kept = json.loads(self._path.read_text(encoding="utf-8"))
            if isinstance(kept, dict):
                return {machine: known for machine, known in kept.items() if isinstance(known, dict)}
        return {}

    def _save(self) -> None:
        """Write what is known beside what other machines and settings left there. No cache is no error."""
        kept = {**self._kept(), self._machine: self._known}
        partial = self._path.with_suffix(f".{os.getpid()}")
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(kept, indent=1), encoding="utf-8")
            os.replace(partial, self._path)

    @property
    def _path(self) -> Path:
        return cache_folder().parent / "blas.json"

    @cached_property
    def _machine(self) -> str:
        blas = " ".join(f"{name}={os.environ[name]}" for name in BLAS_VARIABLES if os.environ.get(name))
        versions = f"graphrt {graphrt.__version__} numpy {np.__version__}"
        return f"{platform.node()} {platform.machine()} {versions} cpu {self._settings.thread_count} blas {blas}"

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
