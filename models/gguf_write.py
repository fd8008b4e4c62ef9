"""Save GGUF files, tensor by tensor, so that a model larger than memory can be written.

The file is written beside its target under a temporary name and renamed when complete: a failure loses nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphrt import dtypes
from graphrt.dtypes import Array, DType
from graphrt.errors import FormatError, GraphError

if TYPE_CHECKING:
    from gguf import GGUFValueType, GGUFWriter

Progress = Callable[[int, int], None]
"""Called with the bytes written so far and the bytes in all."""


@dataclass(frozen=True)
class TensorToWrite:
    """A tensor of a file to be.

    Args:
        name: GGUF name.
        dtype: type in the file.
        shape: elements in NumPy order.
        chunks: yields the tensor's values in order, in pieces of whole rows, each in `dtype`'s array convention.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[Array]]

    @property
    def nbytes(self) -> int:
        return prod(self.shape[:-1]) * self.dtype.row_bytes(self.shape[-1])

    @classmethod
    def of(cls, name: str, array: Array) -> TensorToWrite:
        """A tensor that is in memory already."""
        return cls(name, dtypes.of(array), dtypes.shape_of(array), lambda: [array])


def save(
    path: str | Path,
    architecture: str,
    metadata: Mapping[str, Any],
    tensors: Sequence[TensorToWrite],
    progress: Progress | None = None,
) -> None:
    """Write a GGUF file through gguf.GGUFWriter.

    Args:
        path: the file; replaced if it exists.
        architecture: "llama", "deepseek2" ...
        metadata: values by key. int is written as uint32 where it fits, float as float32; lists of strings and NumPy
            arrays of numbers become arrays; NumPy scalars keep their type; empty arrays and None are left out.
        tensors: in the order of the file.
        progress: called after each piece.
    Raises: FormatError if a value has no GGUF type, or a tensor's pieces do not fill its shape.
    """
    from gguf import GGUFWriter

    target = Path(path)
    if not target.parent.is_dir():
        raise FormatError(f"[{target}] cannot be written: {target.parent} is not a folder; make it first")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    writer = GGUFWriter(partial, architecture)
    _declare(writer, metadata, tensors)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        _write_data(writer, tensors, progress)
        writer.close()
        os.replace(partial, target)
    except OSError as error:
        problem = error.strerror or error
        raise FormatError(f"[{target}] cannot be written: {problem}; check the folder and the free space") from error
    finally:
        writer.close()
        partial.unlink(missing_ok=True)


def _declare(writer: GGUFWriter, metadata: Mapping[str, Any], tensors: Sequence[TensorToWrite]) -> None:
    """Tell the writer all that stands before the tensors' data."""
    from gguf import GGMLQuantizationType

    for key, value in metadata.items():
        if key == "general.alignment":
            writer.add_custom_alignment(value)
        else:
            _add(writer, key, value)
    for tensor in tensors:
        _check(tensor)
        quantization = GGMLQuantizationType(tensor.dtype.gguf)
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, quantization)


def _check(tensor: TensorToWrite) -> None:
    if tensor.shape[-1] % tensor.dtype.block:
        raise GraphError(
            f"[{tensor.name}] a row of {tensor.shape[-1]} elements is not a whole number of {tensor.dtype.name} blocks "
            f"({tensor.dtype.block} elements); choose another type for it"
        )


def _write_data(writer: GGUFWriter, tensors: Sequence[TensorToWrite], progress: Progress | None) -> None:
    # GGUFWriter.write_tensor_data takes whole tensors only; its open file takes them in pieces.
    assert writer.fout is not None
    [file] = writer.fout
    total, done = sum(tensor.nbytes for tensor in tensors), 0
    for tensor in tensors:
        writer.write_padding(file, file.tell())
        before = done
        for chunk in tensor.chunks():
            if chunk.dtype != tensor.dtype.numpy:
                raise GraphError(f"[{tensor.name}] a piece is {chunk.dtype}, the tensor {tensor.dtype.name}")
            np.ascontiguousarray(chunk).tofile(file)
            done += chunk.nbytes
            if progress is not None:
                progress(done, total)
        if done - before != tensor.nbytes:
            raise GraphError(f"[{tensor.name}] {done - before} bytes written, {tensor.shape} takes {tensor.nbytes}")
    writer.write_padding(file, file.tell())


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    """Add one metadata value with the GGUF type that fits it."""
    from gguf import GGUFValueType

    if value is None or (isinstance(value, list | np.ndarray) and not len(value)):
        return
    if isinstance(value, list):
        writer.add_key_value(key, value, GGUFValueType.ARRAY, GGUFValueType.STRING)
    elif isinstance(value, np.ndarray):
        writer.add_key_value(key, value.tolist(), GGUFValueType.ARRAY, _number_type(key, value.dtype))
    elif isinstance(value, np.generic):
        writer.add_key_value(key, value.item(), _number_type(key, value.dtype))
    else:
        writer.add_key_value(key, value, _scalar_type(key, value))


def _number_type(key: str, dtype: np.dtype[Any]) -> GGUFValueType:
    from gguf import GGUFValueType

    name = {"f": "FLOAT", "i": "INT", "u": "UINT"}.get(dtype.kind, "")
    if dtype.kind == "b":
        return GGUFValueType.BOOL
    try:
        return GGUFValueType[f"{name}{8 * dtype.itemsize}"]
    except KeyError:
        raise FormatError(f"[{key}] GGUF has no type for {dtype}; convert it to float32 or int32") from None


def _scalar_type(key: str, value: Any) -> GGUFValueType:
    from gguf import GGUFValueType

    if isinstance(value, bool):
        return GGUFValueType.BOOL
    if isinstance(value, str):
        return GGUFValueType.STRING
    if isinstance(value, float):
        return GGUFValueType.FLOAT32
    if isinstance(value, int):
        if 0 <= value < 1 << 32:
            return GGUFValueType.UINT32
        if -(1 << 31) <= value < 0:
            return GGUFValueType.INT32
        if -(1 << 63) <= value < 1 << 63:
            return GGUFValueType.INT64
    raise FormatError(f"[{key}] GGUF has no type for {value!r}; give a bool, int, float, string, list or array")
