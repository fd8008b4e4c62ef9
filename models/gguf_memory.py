"""A GGUF model read into memory, in place of mapping its file: what llama.cpp's users know as --no-mmap.

A mapped file starts at once and shares its memory, but lies in pages of 4 KiB, at whose ends the processor stops to
read ahead. Memory of its own lies in huge pages, where the system has them: decoding, which is bound by reading
weights, gets a few per cent faster.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from copy import copy
from dataclasses import replace
from pathlib import Path

from graphrt.errors import FormatError, PlacementError
from graphrt.models.gguf_file import GGUFFile

PIECE = 32 << 20  # bytes that a thread reads at a time
READERS = 4
MEMINFO = Path("/proc/meminfo")

Progress = Callable[[int, int], None]


def in_memory(file: GGUFFile, progress: Progress | None = None) -> GGUFFile:
    """The same model with the bytes of all its parts in memory.

    Args:
        progress: is told of progress(bytes read, bytes in all).
    Raises: PlacementError if the memory is not there; FormatError if a part cannot be read to its end.
    """
    free = _available()
    if free is not None and file.size > free:
        raise PlacementError(
            f"[{file.path.name}] {file.size:,} bytes to be read into memory, {free:,} are free; "
            f"map the file instead (without --no-mmap, or mmap=True)"
        )
    sizes = {tensor.path: len(tensor.mapping) for tensor in file.tensors.values() if tensor.mapping is not None}
    memory = {path: _allocate(path, size) for path, size in sizes.items()}
    pieces = [(path, first) for path, size in sizes.items() for first in range(0, size, PIECE)]
    done, total = 0, sum(sizes.values())
    with ThreadPoolExecutor(READERS) as pool:
        for reading in as_completed([pool.submit(_read, path, first, memory[path]) for path, first in pieces]):
            done += reading.result()
            if progress is not None:
                progress(done, total)
    resident = copy(file)
    resident.tensors = {
        name: replace(tensor, mapping=memory.get(tensor.path)) for name, tensor in file.tensors.items()
    }
    return resident


def _allocate(path: Path, size: int) -> mmap.mmap:
    try:
        if not hasattr(mmap, "MAP_ANONYMOUS"):
            return mmap.mmap(-1, size)
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise PlacementError(f"[{path.name}] no room for {size:,} bytes on the host; map the file instead") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _read(path: Path, first: int, memory: mmap.mmap) -> int:
    """Read a piece of the file to its place; returns its bytes."""
    last = min(first + PIECE, len(memory))
    with path.open("rb", buffering=0) as file, memoryview(memory) as room:
        file.seek(first)
        at = first
        while at < last:
            count = file.readinto(room[at:last])
            if not count:
                raise FormatError(f"[{path.name}] ends at byte {at:,} of {len(memory):,}: it was cut while it was read")
            at += count
    return last - first


def _available() -> int | None:
    """Bytes of memory that are free or can be freed, where the system tells."""
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)
