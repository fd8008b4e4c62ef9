"""What kernels are told of rotations: the arguments that rotation.cuh's Rotation is made of."""

from __future__ import annotations

from math import ceil, floor, log2

from graphrt.backends.cuda.elements import double
from graphrt.backends.cuda.launch import Argument
from graphrt.ops.rope import Rotation, pair_with_turns


def spectrum(by: Rotation, dims: int) -> list[Argument]:
    """The arguments after dims: log2 of the base, freq_scale, ext_factor, where the ramp begins, and its width."""
    low, width = 0, 1.0
    if by.ext_factor != 0.0 and dims:
        low = max(0, floor(pair_with_turns(by.beta_fast, dims, by.base, by.original_context)))
        high = min(dims - 1, ceil(pair_with_turns(by.beta_slow, dims, by.base, by.original_context)))
        width = max(0.001, high - low)
    return [double(log2(by.base)), double(by.freq_scale), double(by.ext_factor), low, float(width)]
