"""x as mmvq.cu and mmq.cu take it, in int8, or mmv.cu, in float32: rows in the workspace (quantize.cu, q8.cuh)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from graphrt.backends.cuda.blocks import number_of
from graphrt.backends.cuda.launch import Argument, Launch, Workspace
from graphrt.backends.cuda.operands import aligned
from graphrt.backends.cuda.units import Unit
from graphrt.tensor import Tensor

STEP = 2048  # as in q8.cuh
THREADS, PIECE = 256, 2048  # as in quantize.cu

QUANTIZE = Unit("quantize", ["expand", "quantize"])


@dataclass(frozen=True)
class Prepared:
    """Rows of int8 in the workspace, from `base` on, as q8.cuh lays them out."""

    rows: int
    width: int
    base: int = 0

    @property
    def _codes_bytes(self) -> int:
        return self.rows * -(-self.width // STEP) * STEP

    @property
    def arguments(self) -> list[Argument]:
        """Codes and factors."""
        return [Workspace(self.base), Workspace(self.base + aligned(self._codes_bytes))]

    @property
    def end(self) -> int:
        return self.base + aligned(self._codes_bytes) + aligned(max(1, self._codes_bytes // 32 * 8))

    def fill(self, x: Tensor) -> Launch:
        """Puts x there."""
        arguments = [x, *self.arguments, self.width, number_of(x.dtype)]
        return Launch(QUANTIZE.kernel("quantize"), _pieces(x), [THREADS], arguments)


def pitch_of(x: Tensor) -> int:
    """Elements of a row of x in float32 in the workspace."""
    return -(-x.shape[-1] // 8) * 8


def expanded(x: Tensor) -> Launch:
    """Puts x into the workspace as rows of float32."""
    arguments = [x, Workspace(), x.shape[-1], pitch_of(x), number_of(x.dtype)]
    return Launch(QUANTIZE.kernel("expand"), _pieces(x), [THREADS], arguments)


def _pieces(x: Tensor) -> list[int]:
    """A grid over rows of x and pieces of a row."""
    return [prod(x.shape[:-1]), max(1, -(-x.shape[-1] // PIECE))]
