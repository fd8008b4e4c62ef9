"""What a GPU can do at best, and what the driver takes between kernels."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from unittest.mock import patch

import numpy as np

import graphrt
from graphrt import Graph, KernelError, Scheduler, ops
from graphrt.backends.cuda import CudaBackend

REPEATS, RUNS_AT_ONCE = 5, 10
COPIED, SIDE = 1 << 30, 8192  # bytes of a copy, rows and columns of a product
BF16, SUMS_IN_F32, ANY_ALGORITHM = 14, 68, -1  # as cublas_api.h and library_types.h number them
CHAIN = 256  # kernels, one after the other, that do next to nothing


def seconds_of(run: Callable[[], object], wait: Callable[[], object], at_once: int = RUNS_AT_ONCE) -> float:
    """The median seconds of a run, several begun at once."""
    run()
    wait()
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(at_once):
            run()
        wait()
        found.append((time.perf_counter() - start) / at_once)
    return median(found)


def limits() -> dict[str, float]:
    """Bytes per second of a copy on the device, read and written; bf16 operations per second of cuBLAS."""
    import cupy

    source = cupy.ones(COPIED, cupy.uint8)
    target = cupy.empty_like(source)
    wait = cupy.cuda.Device().synchronize
    copy = seconds_of(lambda: cupy.copyto(target, source), wait)
    a, b, c = (cupy.random.randint(0, 1 << 14, (SIDE, SIDE), cupy.uint16) for _ in range(3))  # bits of 0 … 2
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    handle, cublas = cupy.cuda.device.get_cublas_handle(), cupy.cuda.cublas

    def multiply() -> None:
        cublas.gemmEx(
            handle, 1, 0, SIDE, SIDE, SIDE, one.ctypes.data, a.data.ptr, BF16, SIDE, b.data.ptr, BF16, SIDE,
            zero.ctypes.data, c.data.ptr, BF16, SIDE, SUMS_IN_F32, ANY_ALGORITHM,
        )  # fmt: skip

    return {"bytes": 2 * source.nbytes / copy, "flops": 2 * SIDE**3 / seconds_of(multiply, wait)}


def gaps(backend: CudaBackend) -> dict[str, float]:
    """Seconds for each kernel of a chain of small ones, in a captured graph, and where nothing is captured."""
    found = {"in a CUDA graph": _chain(backend)}
    if hasattr(backend.device, "_capture"):
        with patch.object(backend.device, "_capture", side_effect=KernelError("it was not asked for")):
            found["launched one by one"] = _chain(backend)
    return found


def _chain(backend: CudaBackend) -> float:
    node = graphrt.input("x", (32,))
    for _ in range(CHAIN):
        node = ops.silu(node)
    plan = Scheduler([backend, "cpu"], node_overrides=["silu=cuda"]).plan(Graph(node))
    return seconds_of(plan.execute, backend.synchronize, at_once=1) / CHAIN
