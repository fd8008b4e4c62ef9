"""The cuda backend: graphs on NVIDIA GPUs, through kernels in CUDA C++ that are compiled when they are first needed.

Start reading at device.py (what is asked of hardware) and its two implementations, cupy_device.py (a GPU, by CuPy) and
shim_device.py (the CPU, for tests); then units.py and nvrtc.py (kernels and their compiler), launch.py (how a kernel is
started), registry.py (how an op gets kernels), program.py (how a split runs) and copies.py (how weights come from
the host meanwhile). Kernels stand under kernels/, and their launches in files named like those of ops/.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakSet

from graphrt.backend import Backend, Group, Program, Progress, Split, Support
from graphrt.backends.cuda import registry
from graphrt.backends.cuda.copies import Arrival, Copies
from graphrt.backends.cuda.device import Device
from graphrt.backends.cuda.hardware import made_for
from graphrt.backends.cuda.launch import kernels_of
from graphrt.backends.cuda.memory import CudaBuffer
from graphrt.backends.cuda.registry import lowering
from graphrt.dtypes import Array
from graphrt.errors import MemoryFullError
from graphrt.events import Event
from graphrt.kernels import dtypes_in, floats
from graphrt.settings import AUTO, Settings
from graphrt.tensor import Tensor

if TYPE_CHECKING:
    from graphrt.backends.cuda.offload import BreakEven
    from graphrt.fusion import Readers

__all__ = ["CudaBackend", "create", "dtypes_in", "floats", "lowering"]


class CudaBackend(Backend):
    """Runs nodes on one device.

    Args:
        device: that does it.
        name: of the backend and of its memory.
    """

    asynchronous = True

    def __init__(self, device: Device, name: str = "cuda") -> None:
        self.device = device
        self.name = self.memory = name
        self.limit, self.speed = device.total_bytes, device.speed
        self.copy_queue = Copies(device, name)
        self._buffers: WeakSet[CudaBuffer] = WeakSet()
        self._break_even: BreakEven | None = None

    @property
    def version(self) -> str:
        return f"{self.device.name} sm_{self.device.architecture}"

    @property
    def used(self) -> int:
        """Bytes of the memory that are taken now."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def supports(self, node: Tensor) -> Support:
        return registry.supports(node)

    def least_batch(self, node: Tensor, settings: Settings) -> int:
        weight = node.srcs[0] if node.srcs else None
        if settings.op_offload_min_batch != AUTO or weight is None:
            return super().least_batch(node, settings)
        if self._break_even is None:
            from graphrt.backends.cuda.offload import BreakEven

            self._break_even = BreakEven(settings, self)
        return self._break_even.least_batch(weight.dtype)

    def workspace(self, node: Tensor) -> int:
        record = registry.find(node.op) if node.op is not None and node.size else None
        with made_for(self.device.hardware):
            return 0 if record is None else record.workspace(node)

    def allocate(self, nbytes: int) -> CudaBuffer:
        """Zeroed memory on the device.

        Raises: MemoryFullError if there is no room.
        """
        try:
            buffer = CudaBuffer(self.memory, nbytes, self.device)
        except MemoryError as error:
            largest = ", ".join(
                f"{size:,}" for size in sorted((each.nbytes for each in self._buffers), reverse=True)[:3]
            )
            raise MemoryFullError(
                f"[{self.name}] no room for {nbytes:,} bytes: {error}; {self.used:,} are taken by graphrt"
                f"{f', its largest buffers {largest}' if largest else ''}; move weights to the host with an override "
                f'("exps=cpu" moves the experts), lower n_ctx, or drop plans with Scheduler.clear()',
                self.name,
                self.device.free_bytes(),
            ) from error
        self._buffers.add(buffer)
        return buffer

    def staging(self, nbytes: int) -> Array:
        """Memory that the device reads itself; where the host can pin no more, the driver copies once more."""
        try:
            return self.device.pinned(nbytes)
        except MemoryError:
            return super().staging(nbytes)

    def record(self) -> Event:
        return self.device.record()

    def wait_for(self, event: Event) -> None:
        self.device.wait_for(event.event if isinstance(event, Arrival) else event)

    def drop(self, thread: int) -> None:
        self.copy_queue.drop(thread)

    def synchronize(self) -> None:
        try:
            self.copy_queue.synchronize()
        finally:
            self.device.synchronize()

    def fuse(self, nodes: Sequence[Tensor], readers: Readers) -> list[Group]:
        from graphrt.backends.cuda.fusion import fuse

        with made_for(self.device.hardware):
            return fuse(nodes, readers, self.alone)

    def warm_up(self, groups: Sequence[Group], progress: Progress | None = None) -> int:
        from graphrt.backends.cuda.program import launches_of

        with made_for(self.device.hardware):
            kernels = kernels_of(step for group in groups for step in launches_of(group))
        return self.device.load(kernels, progress)

    def compile(self, split: Split) -> Program:
        from graphrt.backends.cuda.program import compile_split

        with made_for(self.device.hardware):
            return compile_split(split, self.device)


def create(settings: Settings, device: int | None = None) -> CudaBackend:
    """Make the backend of a GPU: "cuda" is the first one, "cuda1" the second.

    Raises: PlacementError that says what is missing.
    """
    from graphrt.backends.cuda.cupy_device import CupyDevice

    return CudaBackend(CupyDevice.open(device or 0), "cuda" if device is None else f"cuda{device}")
