"""A bounded walk over the header of a GGUF file: metadata and the table of tensors.

gguf.GGUFReader trusts every count it reads: a damaged length makes it allocate gigabytes or fail in NumPy, and it keeps
an array for each string (4.3 s for a vocabulary of 100,000 tokens, where this walk takes 0.1 s). So the header is read
here, and each length is held against the bytes that are left before anything is made of it.

Source: the GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graphrt.errors import FormatError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
LEAST_ALIGNMENT = 8
MAX_KEY_BYTES = 65535
MAX_TENSOR_NAME_BYTES = 64
MAX_DIMENSIONS = 4
MAX_NESTED_ARRAYS = 4

STRING, ARRAY, BOOL = 8, 9, 7
SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    BOOL: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
SMALLEST_ELEMENT_BYTES = {STRING: 8, ARRAY: 12}

_UINT32 = struct.Struct("<I")
_UINT64 = struct.Struct("<Q")


@dataclass(frozen=True)
class TensorInfo:
    """One entry of the tensor table: shape in NumPy order, `offset` in bytes from the start of the data section."""

    name: str
    shape: tuple[int, ...]
    gguf_type: int
    offset: int
    entry_at: int


@dataclass(frozen=True)
class Header:
    """All that stands before the tensors' data; `data_at` is the byte at which that data begins."""

    version: int
    alignment: int
    metadata: dict[str, Any]
    tensors: list[TensorInfo]
    data_at: int


class Cursor:
    """A position in a file's bytes that never moves past their end.

    Args:
        path: the file's name, for messages.
        data: its bytes.
    """

    def __init__(self, path: Path, data: mmap.mmap | bytes) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.position = 0

    def fail(self, what: str, remedy: str = "the file is damaged or cut short: fetch or write it again") -> FormatError:
        return FormatError(f"[{self.path.name}] at byte {self.position}: {what}; {remedy}")

    def take(self, count: int, what: str) -> int:
        """Step over `count` bytes and return where they begin."""
        start = self.position
        if count > self.size - start:
            raise self.fail(f"{what} needs {count} bytes, {self.size - start} of {self.size} are left")
        self.position = start + count
        return start

    def uint32(self, what: str) -> int:
        value: int = _UINT32.unpack_from(self.data, self.take(4, what))[0]
        return value

    def uint64(self, what: str) -> int:
        value: int = _UINT64.unpack_from(self.data, self.take(8, what))[0]
        return value

    def string(self, what: str, limit: int | None = None) -> str:
        length = self.uint64(f"the length of {what}")
        if limit is not None and length > limit:
            raise self.fail(f"{what} is {length} bytes long, the format allows {limit}")
        start = self.take(length, what)
        try:
            return str(self.data[start : start + length], "utf-8")
        except UnicodeDecodeError as error:
            self.position = start
            raise self.fail(f"{what} is not valid UTF-8 ({error.reason})") from error

    def strings(self, count: int, what: str) -> list[str]:
        """`count` strings in a row; a loop of its own because vocabularies hold hundreds of thousands."""
        data, size, position = self.data, self.size, self.position
        length_at = _UINT64.unpack_from
        found = []
        try:
            for index in range(count):
                start = position + 8
                if start > size or (end := start + length_at(data, position)[0]) > size:
                    self.position = position
                    raise self.fail(
                        f"string {index} of the {count} in {what} passes the end of the file ({size} bytes)"
                    )
                found.append(str(data[start:end], "utf-8"))
                position = end
        except UnicodeDecodeError as error:
            self.position = position
            raise self.fail(f"string {len(found)} of {what} is not valid UTF-8 ({error.reason})") from error
        self.position = position
        return found

    def value(self, value_type: int, what: str) -> Any:
        """One metadata value: a Python scalar or string, a list of strings or lists, or a NumPy array of numbers."""
        if value_type in SCALARS:
            dtype = SCALARS[value_type]
            return np.frombuffer(self.data, dtype, 1, self.take(dtype.itemsize, what))[0].item()
        if value_type == STRING:
            return self.string(what)
        if value_type == ARRAY:
            return self.array(what, MAX_NESTED_ARRAYS)
        raise self.fail(f"{what} has the unknown value type {value_type}; known are 0 to 12")

    def array(self, what: str, depth: int) -> Any:
        element = self.uint32(f"the element type of {what}")
        count = self.uint64(f"the length of {what}")
        smallest = SCALARS[element].itemsize if element in SCALARS else SMALLEST_ELEMENT_BYTES.get(element)
        if smallest is None:
            raise self.fail(f"{what} has the unknown element type {element}; known are 0 to 12")
        if count > (self.size - self.position) // smallest:
            raise self.fail(f"{what} claims {count} elements, {self.size - self.position} bytes are left")
        if element in SCALARS:
            start = self.take(count * smallest, what)
            return np.frombuffer(self.data, SCALARS[element], count, start).copy()
        if element == STRING:
            return self.strings(count, what)
        if depth == 0:
            raise self.fail(f"{what} nests arrays more than {MAX_NESTED_ARRAYS} deep")
        return [self.array(what, depth - 1) for _ in range(count)]


def read_header(path: Path, data: mmap.mmap | bytes) -> Header:
    """Walk the header of the GGUF file whose bytes are `data`.

    Raises: FormatError naming the byte offset, the numbers and the remedy, for anything that cannot be right.
    """
    cursor = Cursor(path, data)
    version = _read_version(cursor)
    tensor_count = cursor.uint64("the number of tensors")
    metadata_count = cursor.uint64("the number of metadata keys")
    # A key is at least 13 bytes (length, type, one-byte value), a tensor's entry at least 32: counts beyond are damage.
    if metadata_count > cursor.size // 13 or tensor_count > cursor.size // 32:
        raise cursor.fail(f"{tensor_count} tensors and {metadata_count} metadata keys do not fit {cursor.size} bytes")
    metadata = _read_metadata(cursor, metadata_count)
    alignment = _alignment(cursor, metadata)
    tensors = [_read_tensor_info(cursor, index, tensor_count) for index in range(tensor_count)]
    data_at = -(-cursor.position // alignment) * alignment
    return Header(version, alignment, metadata, tensors, data_at)


def _read_version(cursor: Cursor) -> int:
    magic = bytes(cursor.data[:4])
    if magic != MAGIC:
        cursor.position = 0
        raise cursor.fail(f"the file begins with {magic!r}, not {MAGIC!r}", "this is not a GGUF file: check the path")
    cursor.take(4, "the magic number")
    version = cursor.uint32("the version")
    if version not in VERSIONS and version & 0xFFFF == 0:
        raise cursor.fail("the file is big-endian", "convert it with gguf-py's gguf_convert_endian.py")
    if version not in VERSIONS:
        raise cursor.fail(f"GGUF version {version} is unknown; known are 2 and 3", "convert the model again")
    return version


def _read_metadata(cursor: Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for index in range(count):
        key = cursor.string(f"the key of metadata entry {index}", MAX_KEY_BYTES)
        if not key or key in metadata:
            problem = f'stands twice: "{key}"' if key else "is empty"
            raise cursor.fail(f"the key of metadata entry {index} of {count} {problem}")
        value_type = cursor.uint32(f'the type of "{key}"')
        metadata[key] = cursor.value(value_type, f'the value of "{key}"')
    return metadata


def _alignment(cursor: Cursor, metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < LEAST_ALIGNMENT or alignment & (alignment - 1):
        raise cursor.fail(f"general.alignment is {alignment!r}, not a power of two of at least {LEAST_ALIGNMENT}")
    return alignment


def _read_tensor_info(cursor: Cursor, index: int, count: int) -> TensorInfo:
    entry_at = cursor.position
    name = cursor.string(f"the name of tensor {index} of {count}", MAX_TENSOR_NAME_BYTES)
    dimensions = cursor.uint32(f'the dimensions of tensor "{name}"')
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise cursor.fail(f'tensor "{name}" has {dimensions} dimensions; 1 to {MAX_DIMENSIONS} are allowed')
    fastest_first = tuple(cursor.uint64(f'dimension {axis} of tensor "{name}"') for axis in range(dimensions))
    if 0 in fastest_first:
        raise cursor.fail(f'tensor "{name}" has a dimension of zero: {fastest_first[::-1]}')
    gguf_type = cursor.uint32(f'the type of tensor "{name}"')
    offset = cursor.uint64(f'the offset of tensor "{name}"')
    return TensorInfo(name, fastest_first[::-1], gguf_type, offset, entry_at)
