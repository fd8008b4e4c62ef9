"""When weights on the host are brought to the device: by a batch that is set, or measured."""

from __future__ import annotations

import numpy as np
import pytest

import graphrt
from graphrt import Scheduler, ops
from graphrt.backends.cuda import CudaBackend
from graphrt.backends.cuda.offload import BATCHES, BreakEven, break_even
from graphrt.backends.cuda.shim_device import ShimDevice
from graphrt.settings import Settings


def test_break_even_is_where_the_link_overtakes_the_cpu():
    assert break_even(1e10, lambda batch: 4e10 / batch) == 8
    assert break_even(1e10, lambda batch: 5e9) == 1
    assert break_even(1e10, lambda batch: 2e10) == 2 * BATCHES[-1]


def test_measured_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings = Settings.from_env({}, threads=1)
    least = BreakEven(settings, CudaBackend(ShimDevice())).least_batch(graphrt.dtypes.q8_0)
    assert least in (*BATCHES, 2 * BATCHES[-1])
    monkeypatch.setattr(BreakEven, "_cpu_rate", lambda *_: pytest.fail("measured again"))
    assert BreakEven(settings, CudaBackend(ShimDevice())).least_batch(graphrt.dtypes.q8_0) == least


@pytest.mark.parametrize(("rows", "backend"), [(2, "cpu"), (4, "cuda"), (7, "cuda")])
def test_auto_decides_by_the_measured_batch(rows, backend, monkeypatch):
    monkeypatch.setattr(BreakEven, "least_batch", lambda self, dtype: 4)
    w = graphrt.weight("w", np.ones((8, 32), np.float32))
    y = ops.mul_mat(w, graphrt.input("x", (rows, 32)))
    scheduler = Scheduler([CudaBackend(ShimDevice()), "cpu"], overrides=["w=cpu"], op_offload_min_batch=-1, threads=1)
    (placed,) = [part for part in scheduler.schedule(y).explain().splits if part.nodes]
    assert placed.backend == backend
