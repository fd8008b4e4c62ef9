"""Numbers of the dtypes that blocks.cuh knows, for kernels that tell them apart while they run."""

from __future__ import annotations

from graphrt.dtypes import DType
from graphrt.ops.checks import VALUES

QUANTIZED = tuple(dtype.name for dtype in VALUES if dtype.is_quantized)
WEIGHTS = ("f32", "f16", "bf16", *QUANTIZED)  # FOR_WEIGHT_DTYPE of blocks.cuh numbers them alike


def number_of(dtype: DType) -> int:
    """The dtype's number in blocks.cuh."""
    return WEIGHTS.index(dtype.name)
