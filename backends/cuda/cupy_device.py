"""CupyDevice: an NVIDIA GPU through CuPy. Nothing here runs, or is imported, where there is none."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from graphrt.backends.cuda import binaries, nvrtc
from graphrt.backends.cuda.cublas import Cublas, try_out
from graphrt.backends.cuda.device import Device, Replay, Stream
from graphrt.backends.cuda.hardware import Hardware
from graphrt.backends.cuda.launch import Bound, BoundGemm, BoundStep, Gemm, counted
from graphrt.backends.cuda.units import Kernel
from graphrt.dtypes import Array
from graphrt.errors import KernelError, PlacementError
from graphrt.events import Event

LEAST_CAPABILITY = 80
RESERVE = 256 << 20  # bytes of free memory that are left for the driver: kernels' code, captured graphs, cuBLAS
MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
# Dense bf16 operations of a multiprocessor in one cycle, by compute capability.
OPERATIONS_PER_CYCLE = {80: 2048, 86: 1024, 89: 1024, 90: 4096, 100: 8192, 120: 1024}


def probe() -> str:
    """Why no GPU can be used; "" if one can. It never raises, and begins nothing on a device."""
    try:
        import cupy
    except ImportError as error:
        return f"CuPy cannot be imported ({error}); install graphrt[cuda12] or graphrt[cuda13]"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"no GPU answers ({error}); install or update NVIDIA's driver"
    if not count:
        return "the driver finds no GPU; CUDA_VISIBLE_DEVICES may hide it"
    try:
        nvrtc.version()
    except KernelError as error:
        return str(error)
    return ""


def count() -> int:
    """How many GPUs there are."""
    if probe():
        return 0
    import cupy

    return int(cupy.cuda.runtime.getDeviceCount())


class CupyEvent(Event):
    """A point in a stream."""

    def __init__(self, event: Any, device: CupyDevice) -> None:
        self.event, self._device = event, device

    def wait(self) -> None:
        self._device.guarded("waiting", self.event.synchronize)


class CupyStream(Stream):
    """A stream of a GPU for copies."""

    def __init__(self, device: CupyDevice, cupy: Any) -> None:
        self._device, self._cupy = device, cupy
        self.stream = device.guarded("making a stream", lambda: cupy.cuda.Stream(non_blocking=True))

    def upload(self, address: int, data: Array) -> None:
        self.copy(address, data.ctypes.data, data.nbytes, "memcpyHostToDevice")

    def copy(self, target: int, source: int, nbytes: int, direction: str) -> None:
        """Begin a copy in a direction of the runtime's."""
        runtime = self._cupy.cuda.runtime
        kind = getattr(runtime, direction)
        if nbytes:
            self._device.guarded("a copy", lambda: runtime.memcpyAsync(target, source, nbytes, kind, self.stream.ptr))

    def record(self) -> Event:
        def record() -> CupyEvent:
            event = self._cupy.cuda.Event(disable_timing=True)
            event.record(self.stream)
            return CupyEvent(event, self._device)

        return self._device.guarded("recording an event", record)

    def wait_for(self, event: Event) -> None:
        if isinstance(event, CupyEvent):
            self._device.guarded("waiting for an event", lambda: self.stream.wait_event(event.event))
        else:
            event.wait()

    def synchronize(self) -> None:
        self._device.guarded("waiting", self.stream.synchronize)


class CupyDevice(Device):
    """One GPU: its memory, and one stream in which everything but copies ahead happens in order.

    Launches are captured in a stream of their own, so that other threads can go on meanwhile.
    """

    def __init__(self, number: int) -> None:
        import cupy
        from cupy_backends.cuda.api import driver

        self._cupy, self._driver = cupy, driver
        self._errors = (cupy.cuda.runtime.CUDARuntimeError, driver.CUDADriverError)
        self._device = cupy.cuda.Device(number)
        properties = cupy.cuda.runtime.getDeviceProperties(number)
        self.name = properties["name"].decode()
        self.architecture = str(self._device.compute_capability)
        self.speed = _speed(properties, int(self.architecture))
        processors, shared_bytes = properties["multiProcessorCount"], properties["sharedMemPerBlockOptin"]
        self.hardware = Hardware(processors, shared_bytes, self._without_library, has_wgmma=self.architecture == "90")
        self._threads = threading.local()
        self._queue, capturing = CupyStream(self, cupy), CupyStream(self, cupy)
        self._stream, self._capturing = self._queue.stream, capturing.stream
        with self._device:
            self.total_bytes = max(0, int(cupy.cuda.runtime.memGetInfo()[0]) - RESERVE)
        self._functions: dict[Kernel, Any] = {}
        self._shared_allowed: dict[Kernel, int] = {}
        self._cublas: Cublas | str | None = None  # or why there is none
        self._lock = threading.Lock()

    @classmethod
    def open(cls, number: int) -> CupyDevice:
        """The GPU of that number.

        Raises: PlacementError that says what is missing.
        """
        if reason := probe():
            raise PlacementError(f"[cuda] {reason}")
        if number >= (there := count()):
            raise PlacementError(f"[cuda] there is no GPU {number}; the driver finds {there}, counted from 0")
        device = cls(number)
        if int(device.architecture) < LEAST_CAPABILITY:
            raise PlacementError(
                f"[cuda] {device.name} has compute capability {device.architecture}, kernels need {LEAST_CAPABILITY}"
            )
        return device

    def guarded(self, what: str, action: Callable[[], Any]) -> Any:
        """What an action on this device returns.

        Raises: KernelError for what the driver reports, which may come of work begun earlier.
        """
        try:
            with self._device:
                if not hasattr(self._threads, "has_context"):
                    self._device.use()  # a new thread has none, and the driver's own functions bring none
                    self._threads.has_context = True
                return action()
        except self._errors as error:
            raise KernelError(f"[cuda] {what} on {self.name} failed: {error}") from error

    def allocate(self, nbytes: int) -> tuple[int, Any]:
        runtime = self._cupy.cuda.runtime
        try:
            with self._device:
                memory = self._cupy.cuda.Memory(nbytes)
                runtime.memsetAsync(memory.ptr, 0, nbytes, self._stream.ptr)
        except (runtime.CUDARuntimeError, self._cupy.cuda.memory.OutOfMemoryError) as error:
            free, total = self._memory()
            raise MemoryError(f"{self.name} has {free:,} of {total:,} bytes free ({error})") from error
        return memory.ptr, memory

    def free_bytes(self) -> int:
        return self._memory()[0]

    def _memory(self) -> tuple[int, int]:
        """Bytes that are free, and all."""
        free, total = self.guarded("asking for free memory", self._cupy.cuda.runtime.memGetInfo)
        return int(free), int(total)

    def pinned(self, nbytes: int) -> Array:
        try:
            with self._device:
                memory = self._cupy.cuda.alloc_pinned_memory(nbytes)
        except (*self._errors, self._cupy.cuda.memory.OutOfMemoryError) as error:
            raise MemoryError(f"no room for {nbytes:,} bytes of pinned memory on the host ({error})") from error
        return np.frombuffer(memory, np.uint8, nbytes)

    def stream(self) -> Stream:
        return CupyStream(self, self._cupy)

    def upload(self, address: int, data: Array) -> None:
        self._queue.upload(address, data)

    def download(self, address: int, into: Array) -> None:
        self._queue.copy(into.ctypes.data, address, into.nbytes, "memcpyDeviceToHost")

    def load(self, kernels: Sequence[Kernel], progress: Callable[[int, int, str], None] | None = None) -> int:
        binaries.make_all(kernels, self.architecture, progress or binaries.show_progress)
        for kernel in kernels:
            self._function(kernel)
        return len(kernels)

    def _function(self, kernel: Kernel) -> Any:
        with self._lock:
            if kernel not in self._functions:
                file = binaries.kernel_file(kernel, self.architecture)
                module = self._cupy.cuda.function.Module()

                def load() -> Any:
                    module.load_file(str(file.path))
                    return module.get_function(file.symbol)

                self._functions[kernel] = self.guarded(f"loading {kernel}", load)
            return self._functions[kernel]

    def prepare(self, launches: Sequence[BoundStep]) -> tuple[Replay, str]:
        try:
            graph = self._capture(self._launcher(launches, self._capturing.ptr))
        except KernelError as error:
            begin = self._launcher(launches, self._stream.ptr)
            return begin, f"{counted(launches)} one by one, since they could not be captured: {error}"
        replay = partial(self.guarded, "a CUDA graph", partial(graph.launch, self._stream))
        return replay, f"a CUDA graph of {counted(launches)}"

    def _launcher(self, launches: Sequence[BoundStep], stream: int) -> Replay:
        """What begins launches in a stream, one by one."""
        calls = [self._call(bound, stream) for bound in launches]

        def begin() -> None:
            for what, function, arguments in calls:
                try:
                    function(*arguments)
                except self._errors as error:
                    raise KernelError(f"[cuda] {what} cannot be launched: {error}") from error

        return lambda: self.guarded("launching", begin)

    def _call(self, bound: BoundStep, stream: int) -> tuple[Kernel | Gemm, Callable[..., None], tuple[Any, ...]]:
        """What a step is, and how it is begun."""
        if isinstance(bound, BoundGemm):
            assert isinstance(self._cublas, Cublas), "the library was asked for before a product was left to it"
            return bound.product, self._cublas.multiply, (bound, stream)
        function = self._function(bound.kernel)
        self._allow_shared(function, bound)
        pointers = ctypes.addressof(bound.pointers)
        arguments = (function.ptr, *bound.grid, *bound.block, bound.shared, stream, pointers, 0)
        return bound.kernel, self._driver.launchKernel, arguments

    def _allow_shared(self, function: Any, bound: Bound) -> None:
        """Let a kernel have as much dynamic shared memory as any launch of it: what was allowed is not taken back."""

        def allow() -> None:
            self._driver.funcSetAttribute(function.ptr, MAX_DYNAMIC_SHARED, bound.shared)

        with self._lock:
            if bound.shared > self._shared_allowed.get(bound.kernel, 0):
                self.guarded(f"asking {bound.shared:,} bytes of shared memory for {bound.kernel}", allow)
                self._shared_allowed[bound.kernel] = bound.shared

    def _without_library(self) -> str:
        """Why there is no cuBLAS, "" if there is; it is opened at the first question, outside of any capture."""
        with self._lock:
            if self._cublas is None:
                try:
                    found: Cublas = self.guarded("opening cuBLAS", Cublas)
                    self.guarded("trying cuBLAS", lambda: try_out(found, self, self._stream.ptr))
                    self._cublas = found
                except Exception as error:
                    self._cublas = f"cuBLAS cannot be used: {next(iter(str(error).splitlines()), repr(error))}"
            return self._cublas if isinstance(self._cublas, str) else ""

    def _capture(self, begin: Replay) -> Any:
        """The launches as a CUDA graph, which is begun in one call."""
        runtime = self._cupy.cuda.runtime

        def capture() -> Any:
            # Libraries may load kernels meanwhile, and other threads do what they like.
            self._capturing.begin_capture(runtime.streamCaptureModeRelaxed)
            try:
                begin()
            except KernelError:
                with suppress(*self._errors):  # what ends the capture tells less than what broke it
                    self._capturing.end_capture()
                raise
            graph = self._capturing.end_capture()
            graph.upload(self._stream)
            return graph

        with self._lock:
            return self.guarded("capturing a graph", capture)

    def record(self) -> Event:
        return self._queue.record()

    def wait_for(self, event: Event) -> None:
        self._queue.wait_for(event)

    def synchronize(self) -> None:
        self._queue.synchronize()


def _speed(properties: dict[str, Any], capability: int) -> tuple[float, float]:
    """bf16 operations and bytes of memory per second, by the clocks that the driver tells."""
    known = [OPERATIONS_PER_CYCLE[each] for each in sorted(OPERATIONS_PER_CYCLE) if each <= capability]
    clock, memory_clock = 1e3 * properties.get("clockRate", 0), 1e3 * properties.get("memoryClockRate", 0)
    flops = properties["multiProcessorCount"] * clock * (known[-1] if known else 1024)
    bandwidth = 2 * memory_clock * properties.get("memoryBusWidth", 0) / 8
    return float(flops or 1e14), float(bandwidth or 1e12)
