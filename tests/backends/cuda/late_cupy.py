"""A stand-in for CuPy on a machine without a GPU: it has what CupyDevice asks of it, and is as late as CUDA may be.

What is begun in a stream is done only when somebody waits for it, in the stream's order and after the events that it
waits for; in an eager stream, as soon as these have passed. Kernels are the shim's. Copies read pinned memory when they
are done, other memory when they are begun.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from graphrt.backends.cuda import binaries, cublas
from graphrt.backends.cuda.shim_device import _function, _library
from graphrt.backends.cuda.units import Kernel
from tests.backends.cuda.late_cublas import LateCublas

Action = Callable[[], None]
LOCK = threading.RLock()  # one thread at a time does what is due


class CUDARuntimeError(RuntimeError):
    """What the runtime reports."""


class CUDADriverError(RuntimeError):
    """What the driver reports."""


class OutOfMemoryError(MemoryError):
    """What CuPy's allocators report."""


@dataclass
class Wait:
    """What lets a stream wait until another has done so many actions."""

    stream: Stream
    count: int

    @property
    def is_over(self) -> bool:
        return self.stream.done >= self.count

    def __call__(self) -> None:
        self.stream.reach(self.count)


class Stream:
    """What is begun, in order; while it is captured, launches go into the graph."""

    by_pointer: ClassVar[dict[int, Stream]] = {}

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self.ptr = 1 + len(Stream.by_pointer)
        Stream.by_pointer[self.ptr] = self
        self.is_eager = False
        self.waiting: deque[Action] = deque()
        self.done = 0  # actions, of all that were ever begun
        self.captured: list[Action] | None = None

    def begin(self, action: Action) -> None:
        with LOCK:
            (self.waiting if self.captured is None else self.captured).append(action)
            self.hurry()

    def reach(self, count: int) -> None:
        """Do what is due until so many actions are done."""
        with LOCK:
            while self.done < count:
                action = self.waiting.popleft()
                action()
                self.done += 1
                for other in tuple(Stream.by_pointer.values()):
                    other.hurry()

    def hurry(self) -> None:
        """Do what need not wait, if the stream is eager."""
        while self.is_eager and self.waiting:
            if isinstance(self.waiting[0], Wait) and not self.waiting[0].is_over:
                return
            self.waiting.popleft()()
            self.done += 1

    def synchronize(self) -> None:
        self.reach(self.done + len(self.waiting))

    def wait_event(self, event: Event) -> None:
        if event.stream is not None:
            self.begin(Wait(event.stream, event.count))

    def begin_capture(self, mode: int | None = None) -> None:
        self.captured = []

    def end_capture(self) -> Graph:
        actions, self.captured = self.captured or [], None
        return Graph(actions)


class Graph:
    """A captured graph."""

    def __init__(self, actions: list[Action]) -> None:
        self.actions = actions

    def upload(self, stream: Stream) -> None:
        return

    def launch(self, stream: Stream) -> None:
        stream.begin(lambda: [action() for action in self.actions] and None)


class Event:
    """A point in a stream."""

    def __init__(self, block: bool = False, disable_timing: bool = False) -> None:
        self.stream: Stream | None = None
        self.count = 0

    def record(self, stream: Stream) -> None:
        with LOCK:
            self.stream, self.count = stream, stream.done + len(stream.waiting)

    def synchronize(self) -> None:
        if self.stream is not None:
            self.stream.reach(self.count)


class Gpu:
    """A GPU, and the modules that stand for it.

    Args:
        total: bytes of its memory.
        capturable: whether launches can be captured.
        most_pinned: bytes of pinned memory that the host gives.
        eager_copies: whether streams after the first are eager.
        cublas: the status with which cuBLAS answers to products in a capture, 0 if they succeed; None: there is none.
    """

    def __init__(
        self,
        total: int = 1 << 30,
        capturable: bool = True,
        most_pinned: int = 1 << 30,
        eager_copies: bool = False,
        cublas: int | None = 0,
    ) -> None:
        self.streams, self.eager_copies = 0, eager_copies
        self.total, self.taken, self.most_pinned, self.capturable = total, 0, most_pinned, capturable
        self.pinned: list[range] = []
        self.kernels: list[Kernel] = []
        self.graphs_launched = self.kernels_launched = 0
        self.shared_allowed: dict[int, int] = {}
        self.meanwhile: Callable[[], None] = lambda: None  # what others do while launches are captured
        self.cublas = LateCublas(Stream.by_pointer, cublas)

    def modules(self) -> dict[str, ModuleType]:
        """What is imported in place of CuPy."""
        cupy, api = ModuleType("cupy"), ModuleType("cupy_backends.cuda.api")
        Memory, gpu = _memory_of(self), self

        class Graphs(Graph):
            def launch(self, stream: Stream) -> None:
                gpu.graphs_launched += 1
                super().launch(stream)

        class Streams(Stream):
            def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
                super().__init__(null, non_blocking)
                self.is_eager = gpu.eager_copies and gpu.streams > 0
                gpu.streams += 1

            def begin_capture(self, mode: int | None = None) -> None:
                if not gpu.capturable:
                    raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported")
                super().begin_capture(mode)
                gpu.meanwhile()

            def end_capture(self) -> Graph:
                return Graphs(super().end_capture().actions)

        cupy.cuda = SimpleNamespace(  # type: ignore[attr-defined]
            runtime=self._runtime(),
            Device=_Device,
            Stream=Streams,
            Event=Event,
            Memory=Memory,
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            alloc_pinned_memory=self._alloc_pinned_memory,
            function=SimpleNamespace(Module=lambda: SimpleNamespace(load_file=self._load, get_function=self._get)),
        )
        api.driver = SimpleNamespace(  # type: ignore[attr-defined]
            CUDADriverError=CUDADriverError, launchKernel=self._launch, funcSetAttribute=self._set_attribute
        )
        return {"cupy": cupy, "cupy_backends": ModuleType("cupy_backends"), "cupy_backends.cuda.api": api}

    def _runtime(self) -> SimpleNamespace:
        properties = {"name": b"late", "multiProcessorCount": 132, "sharedMemPerBlockOptin": 227 << 10}
        return SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            getDeviceCount=lambda: 1,
            getDeviceProperties=lambda number: properties,
            memGetInfo=lambda: (self.total - self.taken, self.total),
            memsetAsync=self._memset,
            memcpyAsync=self._memcpy,
            memcpyHostToDevice=1,
            memcpyDeviceToHost=2,
            streamCaptureModeRelaxed=2,
        )

    def _memset(self, address: int, value: int, nbytes: int, stream: int) -> None:
        Stream.by_pointer[stream].begin(lambda: ctypes.memset(address, value, nbytes) and None)

    def _memcpy(self, target: int, source: int, nbytes: int, kind: int, stream: int) -> None:
        queue = Stream.by_pointer[stream]
        host = source if kind == 1 else target
        if any(host in each for each in self.pinned):
            queue.begin(lambda: ctypes.memmove(target, source, nbytes) and None)
        elif kind == 1:
            held = ctypes.string_at(source, nbytes)
            queue.begin(lambda: ctypes.memmove(target, held, nbytes) and None)
        else:
            queue.synchronize()
            ctypes.memmove(target, source, nbytes)

    def _alloc_pinned_memory(self, nbytes: int) -> Any:
        if sum(map(len, self.pinned)) + nbytes > self.most_pinned:
            raise CUDARuntimeError("cudaErrorMemoryAllocation: out of memory")
        memory = (ctypes.c_uint8 * nbytes)()
        ctypes.memset(memory, 0xFF, nbytes)
        address = ctypes.addressof(memory)
        self.pinned.append(range(address, address + nbytes))
        return memory

    def _load(self, path: str) -> None:
        self._loaded = Path(path).name

    def _get(self, symbol: str) -> SimpleNamespace:
        self.kernels.append(Kernel(self._loaded, symbol))
        return SimpleNamespace(ptr=len(self.kernels) - 1)

    def _set_attribute(self, function: int, attribute: int, value: int) -> None:
        self.shared_allowed[function] = value

    def _launch(self, function: int, *given: int) -> None:
        *sizes, shared, stream, parameters, _ = given
        if shared > max(48 << 10, self.shared_allowed.get(function, 0)):
            raise CUDADriverError("CUDA_ERROR_INVALID_VALUE: too much shared memory")
        kernel, grid, block = self.kernels[function], (ctypes.c_uint * 3)(*sizes[:3]), (ctypes.c_uint * 3)(*sizes[3:])
        self.kernels_launched += 1

        def run() -> None:
            library = _library(kernel.unit, True)
            library.cuda_cpu_order(7)
            native = _function(kernel, True)
            assert not native(grid, block, ctypes.c_size_t(shared), ctypes.c_void_p(parameters)), kernel

        Stream.by_pointer[stream].begin(run)


class _Device:
    compute_capability = "90"

    def __init__(self, number: int) -> None:
        self.number = number

    def use(self) -> None:
        return

    def __enter__(self) -> _Device:
        return self

    def __exit__(self, *error: object) -> None:
        return


def _memory_of(gpu: Gpu) -> type:
    class Memory:
        """A GPU's memory, which holds NaN until it is written."""

        def __init__(self, nbytes: int) -> None:
            if gpu.taken + nbytes > gpu.total:
                raise OutOfMemoryError(f"out of memory allocating {nbytes:,} bytes")
            gpu.taken += nbytes
            self.nbytes, self.bytes = nbytes, np.full(nbytes + 256, 0xFF, np.uint8)
            self.ptr = -(-self.bytes.ctypes.data // 256) * 256

        def __del__(self) -> None:
            for stream in tuple(Stream.by_pointer.values()):  # as cudaFree waits for the device
                stream.synchronize()
            gpu.taken -= getattr(self, "nbytes", 0)

    return Memory


def install(monkeypatch: Any, gpu: Gpu) -> None:
    """Let CupyDevice find this GPU."""
    for name, module in gpu.modules().items():
        monkeypatch.setitem(sys.modules, name, module)

    def kernel_file(kernel: Kernel, architecture: str) -> binaries.KernelFile:
        return binaries.KernelFile(Path(kernel.unit), kernel.expression)

    monkeypatch.setattr(binaries, "make_all", lambda kernels, architecture, progress: None)
    monkeypatch.setattr(binaries, "kernel_file", kernel_file)
    monkeypatch.setattr(cublas, "load", gpu.cublas.load)
