"""The KV cache: cells, and for every layer the memory that holds what attention needs of each cell's token.

C cells, G key/value heads, W width of one head, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from graphrt import dtypes, ops, state
from graphrt.buffer import Buffer
from graphrt.dtypes import Array, DType
from graphrt.errors import SettingsError
from graphrt.models.cells import FIELDS, Cells
from graphrt.tensor import Tensor

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")
KRotation = Literal["roped", "unroped"]
Layout = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class CacheShape:
    """What memory a cache is of; KVCache says what the fields are.

    Raises: SettingsError if the dtype cannot hold such rows.
    """

    layers: int
    size: int
    layout: Layout
    dtype: str = "f16"
    k_rotation: KRotation = "roped"

    def __post_init__(self) -> None:
        cache_dtype(self.dtype, self.layout)

    @property
    def identity(self) -> dict[str, Any]:
        """What two caches must have in common for the rows of one to be the other's."""
        layout = {part: list(shape) for part, shape in self.layout.items()}
        return {"layers": self.layers, "layout": layout, "dtype": self.dtype.lower(), "k_rotation": self.k_rotation}

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape and dtype of every array of a cache, by name: the cells' FIELDS, then each layer's parts."""
        dtype = dtypes.get(self.dtype)
        found = {name: ((self.size,), np.dtype(field)) for name, field in FIELDS.items()}
        for layer in range(self.layers):
            for part, (heads, width) in self.layout.items():
                found[part_name(part, layer)] = ((self.size, heads, width // dtype.block), dtype.numpy)
        return found


class KVCache:
    """Cells, and for every layer the memory behind them.

    Args:
        layers: number of layers.
        size: number of cells.
        layout: the parts of a cell in one layer: name -> (heads G, width W). Keys and values of ordinary attention are
            two parts; the latent cache of multi-head latent attention is one.
        dtype: name of the dtype of all parts.
        k_rotation: "roped" where keys are kept as they are after rotation by their position, "unroped" where before.
        memory: arrays to lie in, CacheShape's by name, such as a file's.
    Raises: SettingsError if the dtype cannot hold such rows.
    """

    def __init__(
        self,
        layers: int,
        size: int,
        layout: Layout,
        dtype: str = "f16",
        k_rotation: KRotation = "roped",
        memory: Mapping[str, Array] | None = None,
    ) -> None:
        self.layers, self.layout, self.k_rotation = layers, dict(layout), k_rotation
        self.dtype = cache_dtype(dtype, layout)
        self.cells = Cells(size, memory)
        self._parts = [
            {
                part: _part_state(part_name(part, layer), (size, heads, width), self.dtype, memory)
                for part, (heads, width) in layout.items()
            }
            for layer in range(layers)
        ]

    @property
    def nbytes(self) -> int:
        """Bytes of all cells in all layers."""
        return sum(part.nbytes for part in self.states)

    @property
    def states(self) -> Sequence[Tensor]:
        """The memory of every part, [C, G, W] each, layer by layer."""
        return [part for parts in self._parts for part in parts.values()]

    def write(
        self, layer: int, part: str, rows: Tensor, cells: Tensor, first: int = 0, after: Tensor | None = None
    ) -> Tensor:
        """Write each token's row to its cell, and return the part as it is after the write.

        Args:
            rows: [T, G, W] of any float dtype; or fewer columns of a part with one head, [T, 1, w].
            cells: [T] i64.
            first: the column of the part where the rows' first one goes.
            after: what an earlier write to this part returned, which this one is to come after.
        Returns: [C, G, W].
        """
        memory = after if after is not None else self._parts[layer][part]  # [C, G, W]
        size, heads, width = memory.shape
        table = memory.reshape(size, heads * width)
        flat = rows.reshape(rows.shape[0], rows.shape[1] * rows.shape[2])
        is_whole = flat.shape[1] == heads * width
        written = ops.set_rows(table, flat, cells, first=None if is_whole else first)  # [C, G·W]
        return written.reshape(size, heads, width)  # [C, G, W]

    def describe(self) -> str:
        """The size, as llama.cpp tells it: in all, and of keys and values where they are parts of their own."""
        rotation = "" if self.k_rotation == "roped" else f", keys {self.k_rotation}"
        head = f"KV cache: {_mib(self.nbytes)} ({self.cells.size} cells, {self.layers} layers"
        shapes = {
            part: f"{self.dtype.name} {width if heads == 1 else f'{heads}x{width}'}"
            for part, (heads, width) in self.layout.items()
        }
        if len(shapes) == 1:
            return f"{head}, {' '.join([*shapes, *shapes.values()])}{rotation})"
        sizes = {part: sum(parts[part].nbytes for parts in self._parts) for part in shapes}
        return f"{head}{rotation}), " + ", ".join(
            f"{part.upper() if len(part) == 1 else part} ({shape}): {_mib(sizes[part])}"
            for part, shape in shapes.items()
        )


def cache_dtype(name: str, layout: Layout) -> DType:
    """The dtype of that name.

    Raises: SettingsError if a cache of that layout cannot be of it.
    """
    if name.lower() not in CACHE_TYPES:
        raise SettingsError(f'[kv cache] unknown cache_type "{name}"; choose one of {", ".join(CACHE_TYPES)}')
    dtype = dtypes.get(name)
    for part, (_, width) in layout.items():
        if width % dtype.block:
            raise SettingsError(
                f"[kv cache] {part}: heads of {width} elements are not whole blocks of {dtype.block} ({name}); "
                f"choose cache_type f16, bf16 or f32"
            )
    return dtype


def part_name(part: str, layer: int) -> str:
    """The name of a layer's part."""
    return f"cache_{part}-{layer}"


def read_rows(memory: Tensor, buffer: Buffer, cells: Array) -> Array:
    """The rows of some cells, wherever they lie.

    Args: memory [C, G, W], the part; buffer: where it is; cells [n] i64.
    Returns: [n, bytes of a row] u8.
    """
    width = memory.strides[0]
    rows = np.empty((len(cells), width), np.uint8)
    for at, first, count in _neighbours(cells):
        rows[at : at + count] = np.asarray(buffer.read(first * width, count * width)).reshape(count, width)
    return rows


def write_rows(memory: Tensor, buffer: Buffer, cells: Array, rows: Array) -> None:
    """Put rows, [n, bytes of a row] u8, into some cells [n] i64."""
    width = memory.strides[0]
    for at, first, count in _neighbours(cells):
        buffer.write(first * width, np.ascontiguousarray(rows[at : at + count]).reshape(-1))


def _neighbours(cells: Array) -> list[tuple[int, int, int]]:
    """Runs of cells that follow each other: (index in `cells`, first cell, length)."""
    if not len(cells):
        return []
    starts = [0, *(np.flatnonzero(np.diff(cells) != 1) + 1).tolist()]
    ends = [*starts[1:], len(cells)]
    return [(start, int(cells[start]), end - start) for start, end in zip(starts, ends, strict=True)]


def _part_state(name: str, shape: tuple[int, int, int], dtype: DType, memory: Mapping[str, Array] | None) -> Tensor:
    return state(name, shape, dtype) if memory is None else state(name, data=memory[name])


def _mib(nbytes: int) -> str:
    return f"{nbytes / (1 << 20):.2f} MiB"
