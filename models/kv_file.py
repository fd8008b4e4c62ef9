"""A KV cache in a file that is mapped into memory: it may be larger than RAM, and is gone on from when opened again.

    a page with the header | the cells' positions, sequences, shifts and tokens | each layer's parts

Each begins on a page of its own. The header is magic, 16 bytes | version u32 | length u32 | JSON: identity and size.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from graphrt.buffer import HOST
from graphrt.errors import FormatError, SettingsError
from graphrt.models.cells import EMPTY, UNKNOWN
from graphrt.models.kv_cache import CacheShape
from graphrt.models.saved_state import PREFIX, parse_header, require_same
from graphrt.placement import Placements

MAGIC = b"graphrt kv file\0"
VERSION = 1
PAGE = 4096


class KVFile:
    """The file of one context, held by one process at a time.

    Args:
        path: a file; one that is not there, or empty, is made.
        identity: of the model and its cache.
        shape: of the cache.
    Attributes:
        arrays: the cells' fields and the layers' parts by name, over the file.
    Raises: FormatError if the file is damaged, or of another model or size; SettingsError if another process has it, or
        there is no room for it.
    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any], shape: CacheShape) -> None:
        self.path = Path(path)
        expected = {**identity, "cells": shape.size}
        places, total = _places(shape)
        try:
            self._file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        except OSError as error:
            raise SettingsError(f"[kv file] {path} cannot be opened: {error.strerror}") from error
        try:
            self._lock()
            length = os.fstat(self._file.fileno()).st_size
            if length:
                self._check(expected, length, total)
            else:
                self._make(total)
            self._bytes = np.memmap(self._file, np.uint8, "r+", shape=(total,))
            self.arrays = {
                name: np.ndarray(*shape.arrays[name], self._bytes, offset) for name, offset in places.items()
            }
            if not length:
                self.arrays["positions"][:], self.arrays["tokens"][:] = EMPTY, UNKNOWN
                self._write_header(expected)
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Write everything to the disk, and let other processes have the file."""
        if not self._file.closed:
            self._bytes.flush()
            _unlock(self._file.fileno())
            self._file.close()

    def require_host(self, placements: Placements) -> None:
        """Raise SettingsError if a part of the cache lives on a device, out of the file's reach."""
        for leaf, home in placements.homes.items():
            if leaf.role == "state" and home.backend.memory != HOST:
                raise SettingsError(
                    f"[kv file] {leaf.name} lives on {home.backend.name} ({home.reason}), and a file holds caches on "
                    f'the host; add the override "cache_=cpu", or do without the file'
                )

    def _lock(self) -> None:
        if not _try_lock(self._file.fileno()):
            raise SettingsError(
                f"[kv file] {self.path} is in use by another context or process; wait for it, or give another file"
            )

    def _make(self, total: int) -> None:
        """Give the new file its length, and room on the disk: a mapping that runs out of it would end the process."""
        free = shutil.disk_usage(self.path.parent).free
        try:
            if total > free:
                raise OSError(errno.ENOSPC, f"{free:,} bytes are free there")
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), 0, total)
            else:
                self._file.truncate(total)
        except OSError as error:
            self.path.unlink()
            raise SettingsError(
                f"[kv file] {self.path} cannot be made {total:,} bytes long: {error.strerror}; lower n_ctx, or choose "
                f"a smaller cache type or another folder"
            ) from error

    def _check(self, expected: Mapping[str, Any], length: int, total: int) -> None:
        what = f"[kv file] {self.path}"
        head = self._file.read(PAGE)
        magic, version, size = PREFIX.unpack_from(head.ljust(PREFIX.size, b"\0"))
        if magic != MAGIC:
            raise FormatError(f"{what} begins with {magic!r} in place of {MAGIC!r}; it is no cache of graphrt")
        if version != VERSION:
            raise FormatError(f"{what} is of version {version}, and this graphrt reads {VERSION}; delete it")
        require_same(what, parse_header(what, head[PREFIX.size : PREFIX.size + size], PREFIX.size), expected)
        if length != total:
            raise FormatError(f"{what} ends at byte {length}, and must at {total}; it is damaged: delete it")

    def _write_header(self, fields: Mapping[str, Any]) -> None:
        """Last of all: a file that was not made to the end has no magic."""
        self._bytes.flush()
        text = json.dumps(fields).encode()
        header = PREFIX.pack(MAGIC, VERSION, len(text)) + text
        if len(header) > PAGE:
            raise SettingsError(f"[kv file] a header of {len(header)} bytes does not fit its page of {PAGE}")
        self._bytes[: len(header)] = np.frombuffer(header, np.uint8)


def _places(shape: CacheShape) -> tuple[dict[str, int], int]:
    """Offset of each array in the file, and the file's length."""
    places, end = {}, PAGE
    for name, (lengths, dtype) in shape.arrays.items():
        places[name] = end
        end += -(-prod(lengths) * dtype.itemsize // PAGE) * PAGE
    return places, end


def _try_lock(descriptor: int) -> bool:
    """Take the file for this context alone, where the system has locks."""
    try:
        import fcntl
    except ImportError:  # Windows refuses to open the file twice for writing by itself
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(descriptor: int) -> None:
    """The mapping keeps the lock otherwise, for as long as an array over it is held."""
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(descriptor, fcntl.LOCK_UN)
