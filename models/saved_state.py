"""Saved sequences: what a cache holds of one sequence, as bytes that another context of the same model can take up.

    magic, 16 bytes | version u32 | length of the header u32 | header, JSON: the cache's identity, number of cells n
    positions [n] i32 | shifts [n] i32 | tokens [n] i32 | rows [n, bytes of a row] of each layer's parts | CRC-32 u32

Numbers are little-endian; cells stand in the order of their positions.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from graphrt.buffer import Buffer
from graphrt.errors import FormatError
from graphrt.models.kv_cache import KVCache, read_rows, write_rows
from graphrt.tensor import Tensor

MAGIC = b"graphrt state\0\0\0"
VERSION = 1
PREFIX = struct.Struct("<16sII")
CHECK = struct.Struct("<I")

BufferOf = Callable[[Tensor], Buffer]


def save(cache: KVCache, buffer_of: BufferOf, identity: Mapping[str, Any], sequence: int) -> bytes:
    """The bytes of a sequence; `buffer_of` tells where each part of the cache lies."""
    cells = cache.cells.of(sequence)
    header = json.dumps({**identity, "cells": len(cells)}).encode()
    table = (cache.cells.positions, cache.cells.shifts, cache.cells.tokens)
    pieces = [PREFIX.pack(MAGIC, VERSION, len(header)), header, *(array[cells].tobytes() for array in table)]
    pieces += [read_rows(memory, buffer_of(memory), cells).tobytes() for memory in cache.states]
    body = b"".join(pieces)
    return body + CHECK.pack(crc32(body))


def load(data: bytes, cache: KVCache, buffer_of: BufferOf, identity: Mapping[str, Any], sequence: int) -> None:
    """Put the saved cells in place of a sequence's.

    Raises: FormatError if the data is damaged, or of another model or cache; GraphError if too few cells are free.
    """
    count, at = _read_header(data, identity)
    widths = [memory.strides[0] for memory in cache.states]
    end = at + count * (3 * 4 + sum(widths))
    if len(data) != end + CHECK.size:
        raise FormatError(
            f"[state] {count} cells end at byte {end + CHECK.size}, the data at {len(data)}; it is cut off or damaged"
        )
    if CHECK.unpack_from(data, end)[0] != crc32(memoryview(data)[:end]):
        raise FormatError(f"[state] the checksum at byte {end} is not that of what stands before it; it is damaged")
    positions, shifts, tokens = np.frombuffer(data, "<i4", 3 * count, at).reshape(3, count)
    taken = cache.cells.replace(sequence, positions, shifts)
    at += 3 * 4 * count
    try:
        for memory, width in zip(cache.states, widths, strict=True):
            rows = np.frombuffer(data, np.uint8, count * width, at).reshape(count, width)
            write_rows(memory, buffer_of(memory), taken, rows)
            at += count * width
    except BaseException:
        cache.cells.release(taken)
        raise
    cache.cells.settle(taken, tokens)


def write_file(path: Path, data: bytes) -> None:
    """Write a state to a file, which is the old one or the new one at any time."""
    beside = path.with_name(f"{path.name}.part")
    beside.write_bytes(data)
    os.replace(beside, path)


def read_file(path: Path) -> bytes:
    """The bytes of a state's file.

    Raises: FormatError if it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise FormatError(f"[state] {path} cannot be read: {error.strerror}; give a file of state_save_file") from error


def _read_header(data: bytes, identity: Mapping[str, Any]) -> tuple[int, int]:
    """The number of cells, and where their numbers begin."""
    if len(data) < PREFIX.size:
        raise FormatError(f"[state] the data ends at byte {len(data)}, before the {PREFIX.size} of its prefix")
    magic, version, length = PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise FormatError(f"[state] begins with {magic!r} in place of {MAGIC!r}; it is no state of graphrt")
    if version != VERSION:
        raise FormatError(f"[state] is of version {version}, and this graphrt reads {VERSION}; save it again")
    at = PREFIX.size + length
    header = parse_header("[state]", data[PREFIX.size : at], PREFIX.size)
    require_same("[state]", header, identity)
    count = header.get("cells")
    if not isinstance(count, int) or count < 0:
        raise FormatError(f"[state] the header at byte {PREFIX.size} tells of {count!r} cells; it is damaged")
    return count, at


def parse_header(what: str, text: bytes, at: int) -> dict[str, Any]:
    """A header's fields.

    Raises: FormatError, naming the byte `at` where it begins, if it is not a JSON object.
    """
    try:
        header = json.loads(text)
    except ValueError as error:
        raise FormatError(f"{what} the header at byte {at} cannot be read ({error}); it is damaged") from error
    if not isinstance(header, dict):
        raise FormatError(f"{what} the header at byte {at} is {header!r}, no object; it is damaged")
    return header


def require_same(what: str, found: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Raise FormatError, naming what differs, unless a header is of this model and cache."""
    differ = [
        f"{name} {json.dumps(found.get(name))}, here {json.dumps(here)}"
        for name, here in identity.items()
        if found.get(name) != here
    ]
    if differ:
        raise FormatError(
            f"{what} is of another model or cache: {'; '.join(differ)}; load that model with the options that it had"
        )
