"""A GGUF model read into memory, in place of mapping its file: what llama.cpp's users know as --no-mmap.

A mapped file starts at once and shares its memory, but lies in pages of 4 KiB, at whose ends the processor stops to
read ahead. Memory of its own lies in huge pages, where the system has them: decoding, which is bound by reading
weights, gets a few per cent faster. There, weights can be interleaved, too (see graphrt/interleaved.py): --repack.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

from graphrt import dtypes
from graphrt.errors import FormatError, PlacementError
from graphrt.models.gguf_file import FileTensor, GGUFFile

PIECE = 32 << 20  # bytes that a thread reads at a time
REPACKED = 1 << 20  # about the bytes that a thread interleaves at a time, which it holds twice
READERS = 4
MEMINFO = Path("/proc/meminfo")

Progress = Callable[[int, int], None]


def in_memory(
    file: GGUFFile, progress: Progress | None = None, repack: Callable[[FileTensor], bool] = lambda tensor: False
) -> GGUFFile:
    """The same model with the bytes of all its parts in memory.

    Args:
        progress: is told of progress(bytes read or interleaved, such bytes in all).
        repack: says which tensors are to be interleaved, of those that can be.
    Raises: PlacementError if the memory is not there; FormatError if a part cannot be read to its end.
    """
    free = _available()
    if free is not None and file.size > free:
        raise PlacementError(
            f"[{file.path.name}] {file.size:,} bytes to be read into memory, {free:,} are free; "
            f"map the file instead (without --no-mmap or --repack; mmap=True)"
        )
    sizes = {tensor.path: len(tensor.mapping) for tensor in file.tensors.values() if tensor.mapping is not None}
    memory = {path: allocate(path, size) for path, size in sizes.items()}
    pieces = [(path, first) for path, size in sizes.items() for first in range(0, size, PIECE)]
    resident = copy(file)
    resident.tensors = {name: replace(tensor, mapping=memory.get(tensor.path)) for name, tensor in file.tensors.items()}
    repacked = [tensor for tensor in resident.tensors.values() if _can_repack(tensor) and repack(tensor)]
    done, total = 0, sum(sizes.values()) + sum(tensor.nbytes for tensor in repacked)
    with ThreadPoolExecutor(READERS) as pool:
        for steps in (
            [partial(_read, path, first, memory[path]) for path, first in pieces],
            [partial(_interleave, tensor, first) for tensor in repacked for first in _first_rows(tensor)],
        ):
            for step in as_completed([pool.submit(step) for step in steps]):
                done += step.result()
                if progress is not None:
                    progress(done, total)
    for tensor in repacked:
        assert tensor.dtype is not None
        dtype = dtypes.interleaved(tensor.dtype)
        resident.tensors[tensor.name] = replace(tensor, dtype=dtype, type_name=dtype.name)
    return resident


def _can_repack(tensor: FileTensor) -> bool:
    return tensor.mapping is not None and tensor.dtype is not None and dtypes.can_interleave(tensor.shape, tensor.dtype)


def _first_rows(tensor: FileTensor) -> range:
    """The first row of each piece that a thread interleaves at a time."""
    assert tensor.dtype is not None
    rows = tensor.nbytes // tensor.dtype.row_bytes(tensor.shape[-1])
    return range(0, rows, _rows_at_a_time(tensor))


def _rows_at_a_time(tensor: FileTensor) -> int:
    assert tensor.dtype is not None
    return max(1, REPACKED // (dtypes.ROWS * tensor.dtype.row_bytes(tensor.shape[-1]))) * dtypes.ROWS


def _interleave(tensor: FileTensor, first: int) -> int:
    """Interleave some rows of a tensor in their place; returns their bytes."""
    rows = tensor.array.reshape(-1, tensor.array.shape[-1])[first : first + _rows_at_a_time(tensor)]
    rows[...] = dtypes.interleave(rows).view(rows.dtype)
    return rows.nbytes


def allocate(path: Path, size: int) -> mmap.mmap:
    """Memory for a file, in huge pages where the system has them.

    Raises: PlacementError if there is no room.
    """
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
