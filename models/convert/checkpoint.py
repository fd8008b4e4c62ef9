"""Read a Hugging Face folder: config.json and the tensors of its safetensors files, one at a time.

The files are mapped, not loaded. The format is read here because the NumPy face of `safetensors` knows neither bfloat16
nor float8: eight bytes of header length, a JSON table, then the data.

Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from graphrt.dtypes import Array
from graphrt.errors import FormatError

INDEX = "model.safetensors.index.json"
DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
}
# DeepSeek-V3 stores a factor for each square of this many rows and columns of a float8 weight.
FLOAT8_TILE = 128
PIECE_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class Entry:
    """Where a tensor stands: dtype, shape, mapped file and first byte."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    mapping: mmap.mmap
    offset: int


class Checkpoint:
    """The weights and configuration of a Hugging Face folder.

    Attributes:
        folder: the folder.
        config: config.json; of a multimodal model, the text part.
        entries: all tensors by name.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FormatError(f"[{self.folder}] is not a folder; give the folder that holds config.json")
        self.config: dict[str, Any] = self.json("config.json")
        self.entries: dict[str, Entry] = {}
        self._expected: set[str] = set()
        for path in self._files():
            self.entries |= read_table(path)

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder.

        Raises: FormatError if it is missing or is not a JSON object.
        """
        path = self.folder / name
        if not path.is_file():
            raise FormatError(f"[{self.folder.name}] {name} is missing; download it from the model's page")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise FormatError(f"[{path.name}] is not valid JSON: {error}; download it again") from error
        if not isinstance(found, dict):
            raise FormatError(f"[{path.name}] holds no JSON object; download it again")
        return found

    def optional_json(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder, or an empty object where there is none."""
        return self.json(name) if (self.folder / name).is_file() else {}

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def expect(self, name: str, shape: tuple[int, ...]) -> None:
        """Check that a tensor is there.

        Raises: FormatError if it is missing or has another shape.
        """
        found = self._entry(name).shape
        self._expected.add(name)
        if found != shape:
            raise FormatError(f"[{name}] has shape {found}, config.json asks for {shape}; use the matching config.json")

    @property
    def unexpected(self) -> list[str]:
        """The tensors that nobody asked for, except those that only repeat what config.json says."""
        known = self._expected | {f"{name}_scale_inv" for name in self._expected}
        if self.config.get("tie_word_embeddings"):
            known.add("lm_head.weight")
        return [name for name in self.entries if name not in known and not name.endswith("rotary_emb.inv_freq")]

    def read(self, name: str, rows: slice = slice(None)) -> Array:
        """A tensor, or rows of it along its first axis, as float32."""
        entry = self._entry(name)
        raw = np.frombuffer(entry.mapping, entry.dtype, prod(entry.shape), entry.offset).reshape(entry.shape)
        values = _as_f32(raw[rows])
        factors = f"{name}_scale_inv"
        if factors in self.entries:
            first, last, _ = rows.indices(entry.shape[0])
            tiles = slice(first // FLOAT8_TILE, -(-last // FLOAT8_TILE))
            spread = np.repeat(np.repeat(self.read(factors, tiles), FLOAT8_TILE, 0), FLOAT8_TILE, 1)
            skipped = first % FLOAT8_TILE
            values *= spread[skipped : skipped + values.shape[0], : values.shape[1]]
        return values

    def pieces(self, name: str) -> Iterator[Array]:
        """A tensor as float32 in pieces along its first axis, none larger than PIECE_ELEMENTS unless a row is."""
        shape = self._entry(name).shape
        if prod(shape) <= PIECE_ELEMENTS:
            yield self.read(name)
            return
        step = max(1, PIECE_ELEMENTS // prod(shape[1:]))
        for start in range(0, shape[0], step):
            yield self.read(name, slice(start, start + step))

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise FormatError(f'[{self.folder.name}] no tensor "{name}" in the safetensors files; download them again')
        return self.entries[name]

    def _files(self) -> list[Path]:
        if (self.folder / INDEX).is_file():
            names = sorted(set(self.json(INDEX).get("weight_map", {}).values()))
        else:
            names = sorted(path.name for path in self.folder.glob("*.safetensors"))
        if not names:
            raise FormatError(
                f"[{self.folder.name}] no .safetensors files; convert PyTorch .bin files with save_pretrained"
            )
        for name in names:
            if not (self.folder / name).is_file():
                raise FormatError(f"[{self.folder.name}] {name} is named in {INDEX} but missing; download it")
        return [self.folder / name for name in names]


def _as_f32(values: Array) -> Array:
    if values.dtype != ml_dtypes.bfloat16:
        return values.astype(np.float32)
    # bfloat16 is the upper half of a float32; a shift is twenty times as fast as ml_dtypes' cast.
    return np.left_shift(values.view(np.uint16), 16, dtype=np.uint32).view(np.float32)


def read_table(path: Path) -> dict[str, Entry]:
    """The table of tensors at the head of a safetensors file.

    Raises: FormatError if the file is cut short, or names a dtype, shape or extent that cannot be.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise FormatError(f"[{path.name}] a header of {length} bytes in a file of {size}; download it again")
        try:
            table = json.loads(file.read(length))
        except ValueError as error:
            raise FormatError(f"[{path.name}] the header is not JSON: {error}; download it again") from error
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if not isinstance(table, dict):
        raise FormatError(f"[{path.name}] the header is no JSON object; download it again")
    table.pop("__metadata__", None)
    return {name: _entry(path, name, item, mapping, 8 + length) for name, item in table.items()}


def _entry(path: Path, name: str, item: Any, mapping: mmap.mmap, data_at: int) -> Entry:
    try:
        dtype, shape = DTYPES.get(item["dtype"]), tuple(int(size) for size in item["shape"])
        begin, end = (data_at + int(offset) for offset in item["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f'[{path.name}] tensor "{name}" is described as {item!r}; download the file again') from error
    if dtype is None:
        raise FormatError(f'[{path.name}] tensor "{name}" is {item["dtype"]}; known: {", ".join(DTYPES)}')
    nbytes = prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or end - begin != nbytes or not data_at <= begin <= end <= len(mapping):
        raise FormatError(
            f'[{path.name}] tensor "{name}" {item["dtype"]} {shape} takes {nbytes} bytes, the file gives it {begin} '
            f"to {end} of {len(mapping)}; download the file again"
        )
    return Entry(dtype, shape, mapping, begin)
