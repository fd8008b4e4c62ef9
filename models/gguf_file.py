"""Open GGUF files: metadata and memory-mapped tensors, of one file or of a model split into parts.

A tensor's array is a read-only view of the mapped file: nothing is copied, and pages are read when they are touched.
"""

from __future__ import annotations

import mmap
import re
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from graphrt import dtypes
from graphrt.dtypes import Array, DType
from graphrt.errors import FormatError
from graphrt.models.gguf_header import Header, TensorInfo, read_header
from graphrt.tensor import Tensor, weight

PART_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True)
class FileTensor:
    """One tensor of a GGUF file.

    Args:
        name: GGUF name, such as "blk.3.ffn_gate_exps.weight".
        dtype: graphrt's dtype, or None for a type that graphrt cannot read.
        type_name: lower-case ggml name of the type, known to graphrt or not.
        shape: elements in NumPy order, slowest first.
        path: the file that holds it.
        offset: first byte in that file.
        nbytes: its size there.
        mapping: the mapped file; None where there is no file and the tensor is only described.
    """

    name: str
    dtype: DType | None
    type_name: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int
    mapping: mmap.mmap | None

    @cached_property
    def array(self) -> Array:
        """The tensor as a read-only view of the file, in graphrt's array convention (blocks on the last axis).

        Raises: FormatError if graphrt cannot read its type, or if there are no bytes to read.
        """
        if self.mapping is None:
            raise FormatError(f'[{self.path.name}] tensor "{self.name}" is described only; synthesise the file')
        if self.dtype is None:
            raise FormatError(
                f'[{self.path.name}] tensor "{self.name}" is of type {self.type_name}, which graphrt cannot read; '
                f"requantize the model to one of {', '.join(dtypes.ALL)}"
            )
        count = self.nbytes // self.dtype.nbytes
        shape = (*self.shape[:-1], self.shape[-1] // self.dtype.block)
        return np.frombuffer(self.mapping, self.dtype.numpy, count, self.offset).reshape(shape)

    def leaf(self, shape: tuple[int, ...]) -> Tensor:
        """The tensor as a weight of a graph, in a shape that keeps its rows; without data where it is only described.

        Raises: FormatError if graphrt cannot read its type.
        """
        if self.mapping is None and self.dtype is not None:
            return Tensor(self.name, self.dtype, shape, role="weight")
        return weight(self.name, self.array.reshape(*shape[:-1], self.array.shape[-1]))


class GGUFFile:
    """A GGUF model on disk; make one with `GGUFFile.open`.

    Attributes:
        path: the file, or the first part of a split model.
        metadata: values by key: scalars, strings, lists of strings, NumPy arrays of numbers.
        tensors: the tensors by name, in the order of the file.
        size: bytes of all parts.
        version: of the GGUF format.
    """

    def __init__(self, path: Path, header: Header, tensors: dict[str, FileTensor], size: int) -> None:
        self.path = path
        self.metadata = header.metadata
        self.tensors = tensors
        self.size = size
        self.version = header.version

    @classmethod
    def open(cls, path: str | Path) -> GGUFFile:
        """Open a GGUF file; of a split model, name any part.

        Raises: FormatError if the file, or a part, is missing, damaged or not GGUF.
        """
        first, *others = _parts(Path(path))
        header, tensors, size = _open_part(first)
        _check_split(first, header, 1 + len(others))
        for other in others:
            _, more, more_bytes = _open_part(other)
            for name in more.keys() & tensors.keys():
                raise FormatError(
                    f'[{other.name}] tensor "{name}" also stands in an earlier part; fetch the parts again'
                )
            tensors |= more
            size += more_bytes
        expected = metadata_value(header.metadata, "split.tensors.count", int, first.name, len(tensors))
        if expected != len(tensors):
            raise FormatError(
                f"[{first.name}] {expected} tensors announced, {len(tensors)} found; fetch the parts again"
            )
        return cls(first, header, tensors, size)

    @property
    def architecture(self) -> str:
        """The model's architecture, such as "llama" or "deepseek2".

        Raises: FormatError if the metadata does not say.
        """
        name = self.metadata.get("general.architecture")
        if not isinstance(name, str):
            raise FormatError(f'[{self.path.name}] no "general.architecture" in the metadata; convert the model again')
        return name


def _parts(path: Path) -> list[Path]:
    """All the files of the model that `path` belongs to, in order."""
    match = PART_NAME.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    numbers = range(1, count + 1)
    if int(match["number"]) not in numbers:
        raise FormatError(f"[{path.name}] part {int(match['number'])} of {count} cannot be; rename the file")
    return [path.with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf") for number in numbers]


def _check_split(path: Path, header: Header, parts: int) -> None:
    count = metadata_value(header.metadata, "split.count", int, path.name, 1)
    if max(count, 1) != parts:
        raise FormatError(
            f"[{path.name}] the metadata names {count} parts, the file's name {parts}; "
            f"give the parts the names they were made with (NAME-00001-of-{count:05}.gguf)"
        )


def _open_part(path: Path) -> tuple[Header, dict[str, FileTensor], int]:
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size == 0:
                raise FormatError(f"[{path.name}] the file is empty; fetch or write it again")
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise FormatError(f"[{path}] cannot be opened: {error.strerror}; check the path and its permissions") from error
    header = read_header(path, mapping)
    tensors: dict[str, FileTensor] = {}
    for info in header.tensors:
        if info.name in tensors:
            raise FormatError(
                f'[{path.name}] at byte {info.entry_at}: a second tensor "{info.name}"; convert the model again'
            )
        tensors[info.name] = _place(path, mapping, header, info)
    _check_overlaps(path, sorted(tensors.values(), key=lambda tensor: tensor.offset))
    return header, tensors, size


def _place(path: Path, mapping: mmap.mmap, header: Header, info: TensorInfo) -> FileTensor:
    """Check a tensor's type, shape and extent against the file."""
    where = f'[{path.name}] at byte {info.entry_at}: tensor "{info.name}"'
    dtype = dtypes.from_gguf(info.gguf_type)
    type_name, block, block_bytes = _type(info.gguf_type, dtype, where)
    if info.shape[-1] % block:
        raise FormatError(
            f"{where} has rows of {info.shape[-1]} elements, {type_name} needs a multiple of {block}; "
            f"quantize the model again"
        )
    if info.offset % header.alignment:
        raise FormatError(
            f"{where} begins at byte {info.offset} of the data, not a multiple of the alignment {header.alignment}; "
            f"convert the model again"
        )
    nbytes = prod(info.shape) // block * block_bytes
    offset = header.data_at + info.offset
    if offset + nbytes > len(mapping):
        raise FormatError(
            f"{where} ({type_name} {info.shape}) takes bytes {offset} to {offset + nbytes}, the file ends at "
            f"{len(mapping)}; the file is cut short: fetch it again"
        )
    return FileTensor(info.name, dtype, type_name, info.shape, path, offset, nbytes, mapping)


def _check_overlaps(path: Path, tensors: list[FileTensor]) -> None:
    """Check that no two tensors, in the order of their offsets, share bytes."""
    for before, after in pairwise(tensors):
        end = before.offset + before.nbytes
        if end > after.offset:
            raise FormatError(
                f'[{path.name}] tensor "{before.name}" takes bytes {before.offset} to {end}, where "{after.name}" '
                f"begins at {after.offset}; the file is damaged: fetch it again, or convert the model again"
            )


def _type(number: int, dtype: DType | None, where: str) -> tuple[str, int, int]:
    """Name, elements and bytes of a block of a GGML type, also of types that graphrt can list but not read."""
    if dtype is not None:
        return dtype.name, dtype.block, dtype.nbytes
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    if number not in GGML_QUANT_SIZES:
        raise FormatError(f"{where} has the unknown GGML type {number}; graphrt reads {', '.join(dtypes.ALL)}")
    kind = GGMLQuantizationType(number)
    return kind.name.lower(), *GGML_QUANT_SIZES[kind]


def metadata_value(metadata: dict[str, Any], key: str, kind: type, where: str, default: Any = None) -> Any:
    """`metadata[key]` if it is a `kind`, `default` where the key is absent.

    Raises: FormatError if the value is of another type.
    """
    value = metadata.get(key, default)
    if key in metadata and type(value) is not kind:
        raise FormatError(f'[{where}] "{key}" is {_describe(value)}, not {kind.__name__}; convert the model again')
    return value


def _describe(value: Any) -> str:
    return f"an array of {len(value)}" if isinstance(value, list | np.ndarray) else f"{value!r}"
