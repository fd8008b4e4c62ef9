"""The named weights of a GGUF file, as leaves of a graph."""

from __future__ import annotations

import re

import numpy as np

from graphrt import dtypes
from graphrt.errors import FormatError
from graphrt.models.gguf_file import GGUFFile
from graphrt.numerics import F16_MAX
from graphrt.tensor import Tensor

# Tensors whose rows are looked up, or that are multiplied the other way round, too: not only matrices of products.
NOT_ONLY_PRODUCTS = re.compile(r"token_embd\.|\.attn_(k|v|kv)_b\.")
SIGN = np.uint16(0x8000)
F16_LARGEST = np.uint16(0x7BFF)  # bits of 65504; those of infinity and NaN are above


class Weights:
    """Hands out a file's tensors and checks their shapes; remembers which nobody asked for.

    Args:
        file: an open GGUF file.
    """

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self._taken: dict[str, Tensor] = {}
        self._ignored: set[str] = set()

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor that the model cannot do without.

        Args:
            name: GGUF name.
            shape: elements in NumPy order. A file may hold three axes as a matrix: the first two are its rows.
        Raises: FormatError if it is missing, of another shape, or of a type that graphrt cannot read.
        """
        found = self.find(name, shape)
        if found is None:
            raise FormatError(
                f'[{self.file.path.name}] no tensor "{name}" {shape}; the file is incomplete, or not of architecture '
                f"{self.file.architecture}: convert the model again"
            )
        return found

    def find(self, name: str, shape: tuple[int, ...]) -> Tensor | None:
        """A tensor, or None where the file has none of that name.

        Raises: FormatError if it is of another shape, or of a type that graphrt cannot read.
        """
        stored = self.file.tensors.get(name)
        if stored is None:
            return None
        if stored.shape != shape and stored.shape != (*_merged(shape), shape[-1]):
            raise FormatError(
                f'[{self.file.path.name}] tensor "{name}" has shape {stored.shape}, the metadata asks for {shape}; '
                f"convert the model again"
            )
        if name not in self._taken:
            self._taken[name] = stored.leaf(shape)
        return self._taken[name]

    def require_in_range(self, tensor: Tensor) -> None:
        """Raise FormatError if a tensor was too large for the f16 it is stored in, as attn_k_b of some models is.

        A converter then leaves infinities, or the largest number of f16. Other types reach farther, and are not read.
        """
        if tensor.dtype is not dtypes.f16 or tensor.data is None:
            return
        magnitudes = tensor.data.view(np.uint16) & ~SIGN
        over = int(np.count_nonzero(magnitudes >= F16_LARGEST))
        if over:
            kept = magnitudes[magnitudes < F16_LARGEST].max(initial=0).view(np.float16)
            short = tensor.name.removesuffix(".weight").rpartition(".")[2]
            raise FormatError(
                f'[{self.file.path.name}] tensor "{tensor.name}" is f16, and {over:,} of its {tensor.size:,} values '
                f"are beyond the {F16_MAX:.0f} that f16 can hold, or no numbers (the largest other one is {kept:.4g}); "
                f"convert it again with --type bf16, or this tensor alone: llama-quantize --tensor-type {short}=bf16"
            )

    def ignore(self, *names: str) -> None:
        """Say that tensors, if they exist, are not needed."""
        self._ignored.update(names)

    @property
    def unused(self) -> list[str]:
        """The file's tensors that were neither taken nor ignored."""
        return [name for name in self.file.tensors if name not in self._taken and name not in self._ignored]


def _merged(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The leading axes of a shape of three as one."""
    return (shape[0] * shape[1],) if len(shape) == 3 else shape[:-1]
