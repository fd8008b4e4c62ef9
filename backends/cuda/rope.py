"""Launches of rope."""

from __future__ import annotations

from math import ceil, floor, log2

from graphrt import ops
from graphrt.backends.cuda.elements import THREADS, WARP, blocks, double, kind
from graphrt.backends.cuda.launch import Address, Argument, Launch, Whole
from graphrt.backends.cuda.registry import lowering
from graphrt.backends.cuda.units import Unit
from graphrt.ops.rope import Rotation, _pair_with_turns
from graphrt.tensor import Tensor

MANY_TOKENS = 64  # from here on a thread turns several heads by the angle that it has worked out
UNIT = Unit("rope", ["rope<false>", "rope<true>"], registers=64)


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
    x, positions, _ = node.srcs
    assert x is not None
    assert positions is not None
    return [_launch("rope<false>", node, node, positions, before=0)]


def rope_set_rows(rope: Tensor, store: Tensor) -> list[Launch]:
    """The launch of a rope and the set_rows of its result into a cache [C, ...] of floats, as one."""
    ids = store.srcs[2]
    assert ids is not None
    return [_launch("rope<true>", rope, store, ids, before=(store.params["first"] or 0) * store.dtype.nbytes)]


def _launch(expression: str, rope: Tensor, y: Tensor, ids: Tensor, *, before: int) -> Launch:
    x, positions, factors = rope.srcs
    assert x is not None
    assert positions is not None
    rotation, row = Rotation(**rope.params), rope.shape[-1]
    heads, dims = rope.shape[-2], rotation.width(row)
    items = row - dims // 2
    tokens = rope.size // (heads * row)
    across = min(THREADS, blocks(items, WARP) * WARP)
    down = THREADS // across
    heads_of_thread = 1 if tokens < MANY_TOKENS else max(1, min(8, heads // down))
    turns = [kind(x), rotation.first, dims, rotation.mode == "normal", *rotation_arguments(rotation, dims)]
    step = 0 if factors is None else factors.strides[-1]
    target = [float(rotation.magnitude), heads_of_thread, ids, ids.dtype.nbytes, kind(y), Whole(before)]
    grid = [tokens * blocks(items, across), blocks(heads, down * heads_of_thread)]
    arguments = [y, x, positions, Address(factors), step, *turns, *target]
    return Launch(UNIT.kernel(expression), grid, [across, down], arguments)
