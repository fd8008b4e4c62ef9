"""Launches of rope."""

from __future__ import annotations

from math import ceil, floor, log2

from graphrt import ops
from graphrt.backends.cuda.elements import THREADS, WARP, blocks, double, kind
from graphrt.backends.cuda.launch import Address, Argument, Launch
from graphrt.backends.cuda.registry import lowering
from graphrt.backends.cuda.units import Unit
from graphrt.ops.rope import Rotation, _pair_with_turns
from graphrt.tensor import Tensor

MANY_TOKENS = 64  # from here on a thread turns several heads by the angle that it has worked out
UNIT = Unit("rope", ["rope"], registers=64)


def rotation_arguments(rotation: Rotation, dims: int) -> list[Argument]:
    """What rotation.cuh's Rotation is made of, after dims."""
    by, low, width = rotation, 0, 1.0
    if by.ext_factor != 0.0 and dims:
        low = max(0, floor(_pair_with_turns(by.beta_fast, dims, by.base, by.original_context)))
        high = min(dims - 1, ceil(_pair_with_turns(by.beta_slow, dims, by.base, by.original_context)))
        width = max(0.001, high - low)
    return [double(log2(by.base)), double(by.freq_scale), double(by.ext_factor), low, float(width)]


@lowering(ops.rope)
def _(node: Tensor) -> list[Launch]:
    x, positions, factors = node.srcs
    assert x is not None
    assert positions is not None
    rotation, row = Rotation(**node.params), node.shape[-1]
    heads, dims = node.shape[-2], rotation.width(row)
    items = row - dims // 2
    rows_of_heads = node.size // (heads * row)
    across = min(THREADS, blocks(items, WARP) * WARP)
    down = THREADS // across
    heads_of_thread = 1 if rows_of_heads < MANY_TOKENS else max(1, min(8, heads // down))
    scalars = [kind(x), rotation.first, dims, rotation.mode == "normal", *rotation_arguments(rotation, dims)]
    step = 0 if factors is None else factors.strides[-1]
    arguments = [node, x, positions, Address(factors), step, *scalars, float(rotation.magnitude), heads_of_thread]
    grid = [rows_of_heads * blocks(items, across), blocks(heads, down * heads_of_thread)]
    return [Launch(UNIT.kernel("rope"), grid, [across, down], arguments)]
