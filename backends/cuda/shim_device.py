"""ShimDevice: the kernels compiled by g++ against shim/, and run on the CPU, one thread of CUDA at a time.

It is slow, and shows nothing of a GPU's speed or of its weaker memory; results, barriers and bounds it shows exactly.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from graphrt.backends.cuda import nvrtc
from graphrt.backends.cuda.device import Device, Replay, Stream
from graphrt.backends.cuda.hardware import Hardware, present
from graphrt.backends.cuda.launch import SCRATCH, Bound, BoundGemm, BoundStep, counted, kernels_of
from graphrt.backends.cuda.units import KERNELS, SHIM, Kernel, digest, unit
from graphrt.dtypes import Array
from graphrt.errors import KernelError
from graphrt.events import PASSED, Event
from graphrt.kept import cache_root

PAGE = mmap.PAGESIZE
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-w", "-fno-strict-aliasing", "-ffp-contract=off")
UNDEFINED = ("-fsanitize=undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=undefined")


class ShimStream(Stream):
    """Copies that are done as soon as they are begun."""

    def upload(self, address: int, data: Array) -> None:
        ctypes.memmove(address, data.ctypes.data, data.nbytes)

    def record(self) -> Event:
        return PASSED

    def wait_for(self, event: Event) -> None:
        event.wait()

    def synchronize(self) -> None:
        return


class ShimDevice(ShimStream, Device):
    """The CPU as a CUDA device.

    Args:
        order: in which a block's threads run: 0 ascending, 1 descending, else the seed of a shuffle.
        guarded: put every buffer's end at a page that nobody may touch, so that reading or writing past it is fatal.
        poisoned: fill new memory with NaN in place of zeros.
        checked: compile with the undefined-behaviour sanitizer, which ends the process at the first misaligned load.
        limit: bytes of memory that it pretends to have.
        hardware: that it pretends to be; None: what is lowered for at the moment.
    """

    architecture = "cpu"

    def __init__(
        self,
        *,
        order: int = 0,
        guarded: bool = False,
        poisoned: bool = False,
        checked: bool = False,
        limit: int | None = None,
        hardware: Hardware | None = None,
    ) -> None:
        self.name = "the CPU, through the shim"
        self.total_bytes = limit
        self.hardware = hardware or present()
        self._order, self._guarded, self._poisoned, self._checked = order, guarded, poisoned, checked
        self._taken = 0

    def allocate(self, nbytes: int) -> tuple[int, Any]:
        if self.total_bytes is not None and self._taken + nbytes > self.total_bytes:
            raise MemoryError(f"{nbytes:,} bytes where {self.total_bytes - self._taken:,} are free")
        self._taken += nbytes
        room = -(-nbytes // PAGE) * PAGE
        memory = mmap.mmap(-1, room + PAGE)
        start = np.frombuffer(memory, np.uint8).ctypes.data
        address = start
        if self._guarded:
            _protect(start + room)
            address = start + (room - nbytes) // 64 * 64  # as much at the end as an alignment of 64 allows
        if self._poisoned:
            ctypes.memset(address, 0xFF, nbytes)
        return address, _Memory(memory, self, nbytes)

    def release(self, nbytes: int) -> None:
        """Memory that nobody uses any longer."""
        self._taken -= nbytes

    def free_bytes(self) -> int:
        return (self.total_bytes or 1 << 62) - self._taken

    def pinned(self, nbytes: int) -> Array:
        return np.zeros(nbytes, np.uint8)

    def stream(self) -> Stream:
        return ShimStream()

    def download(self, address: int, into: Array) -> None:
        ctypes.memmove(into.ctypes.data, address, into.nbytes)

    def load(self, kernels: Sequence[Kernel], progress: Callable[[int, int, str], None] | None = None) -> int:
        for kernel in kernels:
            _function(kernel, self._checked)
        return len(kernels)

    def prepare(self, launches: Sequence[BoundStep]) -> tuple[Replay, str]:
        functions = {kernel: _function(kernel, self._checked) for kernel in kernels_of(launches)}

        def replay() -> None:
            for bound in launches:
                if isinstance(bound, BoundGemm):
                    self._multiply(bound)
                else:
                    self._launch(bound, functions[bound.kernel])

        return replay, f"{counted(launches)} on the CPU"

    def _multiply(self, bound: BoundGemm) -> None:
        """What the library would make; its scratch is written over, as it may be."""
        each = bound.product
        if self._poisoned:
            ctypes.memset(bound.scratch, 0xFF, SCRATCH)
        w = _rows(bound.w, each.rows, each.width, each.w_step, np.uint16)
        x = _rows(bound.x, each.columns, each.width, each.x_step, np.uint16)
        y = _rows(bound.y, each.columns, each.rows, each.y_step, np.float32)
        with np.errstate(all="ignore"):
            np.matmul(_bf16_to_f32(x), _bf16_to_f32(w).T, out=y)

    def _launch(self, bound: Bound, function: Any) -> None:
        library = _library(bound.kernel.unit, self._checked)
        grid, block = (ctypes.c_uint * 3)(*bound.grid), (ctypes.c_uint * 3)(*bound.block)
        library.cuda_cpu_order(self._order)
        if function(grid, block, ctypes.c_size_t(bound.shared), bound.pointers):
            library.cuda_cpu_message.restype = ctypes.c_char_p
            raise KernelError(f"[cuda] {bound.kernel} failed: {library.cuda_cpu_message().decode()}")


class _Memory:
    """Keeps pages alive, and tells the device when nobody uses them any longer."""

    def __init__(self, pages: mmap.mmap, device: ShimDevice, nbytes: int) -> None:
        self._pages = pages
        weakref.finalize(self, device.release, nbytes)


def _rows(address: int, count: int, width: int, step: int, dtype: type[np.generic]) -> Array:
    """Memory as rows of so many elements, `step` elements apart."""
    size = np.dtype(dtype).itemsize
    memory = (ctypes.c_uint8 * (((count - 1) * step + width) * size)).from_address(address)
    return np.ndarray((count, width), dtype, memory, strides=(step * size, size))


def _bf16_to_f32(codes: Array) -> Array:
    found: Array = (codes.astype(np.uint32) << 16).view(np.float32)
    return found


def _protect(address: int) -> None:
    if ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(address), PAGE, 0):
        raise OSError(ctypes.get_errno(), "a page cannot be guarded")


@cache
def _function(kernel: Kernel, checked: bool) -> Any:
    number = unit(kernel.unit).instances.index(kernel.expression)
    return getattr(_library(kernel.unit, checked), f"instance_{number}")


@cache
def _library(name: str, checked: bool) -> ctypes.CDLL:
    """A unit's instances as a library, kept on disk.

    Raises: KernelError if there is no g++, or with its words.
    """
    source = _source(name)
    flags = (*FLAGS, *(UNDEFINED if checked else ()))
    identity = hashlib.sha256("\n".join([source, digest(name, shim=True), *flags, _compiler()]).encode()).hexdigest()
    path = cache_root() / "cuda-shim" / f"{name}_{identity[:32]}.so"
    if not path.exists():
        _build(name, source, flags, path)
    return ctypes.CDLL(str(path))


def _source(name: str) -> str:
    exports = [f"CUDA_CPU_EXPORT(instance_{i}, {each})" for i, each in enumerate(unit(name).instances)]
    return "\n".join(['#include "cuda_cpu.hpp"', f'#include "{unit(name).path}"', *exports, ""])


@cache
def _compiler() -> str:
    found = shutil.which(os.environ.get("CXX", "g++"))
    if found is None:
        raise KernelError("[cuda] the shim needs g++, which is not on the path; install it (Debian: g++), or set CXX")
    return found


def _build(name: str, source: str, flags: Sequence[str], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    folders = [SHIM, KERNELS, *nvrtc.include_folders()]
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        cpp, made = Path(folder) / f"{name}.cpp", Path(folder) / path.name
        cpp.write_text(source)
        command = [_compiler(), *flags, *(f"-I{each}" for each in folders), "-o", str(made), str(cpp)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise KernelError(f"[cuda] {name}.cu does not compile for the CPU:\n{done.stderr[-4000:]}")
        made.replace(path)
