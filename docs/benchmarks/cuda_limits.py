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

    source = cupy.ones(1 << 30, cupy.uint8)
    target = cupy.empty_like(source)
    wait = cupy.cuda.Device().synchronize
    copy = seconds_of(lambda: cupy.copyto(target, source), wait)
    size = 8192
    a, b, c = (cupy.random.randint(0, 1 << 14, (size, size), cupy.uint16) for _ in range(3))
    one, zero = np.float32(1), np.float32(0)
    bf16, handle = 14, cupy.cuda.device.get_cublas_handle()  # CUDA_R_16BF
    cublas, compute = cupy.cuda.cublas, 68  # CUBLAS_COMPUTE_32F

    def multiply() -> None:
        cublas.gemmEx(
            handle, 1, 0, size, size, size, one.ctypes.data, a.data.ptr, bf16, size, b.data.ptr, bf16, size,
            zero.ctypes.data, c.data.ptr, bf16, size, compute, -1,
        )  # fmt: skip

    return {"bytes": 2 * source.nbytes / copy, "flops": 2 * size**3 / seconds_of(multiply, wait)}


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
