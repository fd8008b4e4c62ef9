"""Dot products of a row of weights with a prepared row of x, one unit at a time, for products with few columns.

`Units.add(weights, step, x, total, scratch)` adds the products of one unit to `total`, a vector of 16 partial sums.
Dtypes with int8 products have theirs in vecdot_32.py and vecdot_256.py; the others are expanded to float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from graphrt import dtypes
from graphrt.backends.cpu.dequant import expander
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.memory import load_f32, load_f32_first
from graphrt.backends.cpu.simd import fma
from graphrt.backends.cpu.vecdot_32 import BLOCKS_OF_32, byte_units
from graphrt.backends.cpu.vecdot_256 import BLOCKS_OF_256


@dataclass(frozen=True)
class Units:
    """How rows of one weight dtype are multiplied.

    Args:
        form: of the prepared x.
        elements: of a unit.
        add: helper for a whole unit of weights, `step` bytes between elements or blocks.
        add_rest: helper for the last `count` elements of a row that is no whole number of units.
        many: columns from which expanding the weights to float32 for tiles of x is faster (measured).
        offset: of the codes, for the prepared x (see prepare_rows).
    """

    form: str
    elements: int
    add: Any
    add_rest: Any
    many: int
    offset: int = 0


@cache
def units_of(name: str, dense: bool) -> Units:
    """The way to multiply rows of the dtype of that name; `dense` says whether a row's elements lie side by side."""
    if dense and name in BLOCKS_OF_32:
        products, nbytes, offset = BLOCKS_OF_32[name]
        return Units("bytes", 128, *byte_units(products, nbytes), many=9, offset=offset)
    if dense and name in BLOCKS_OF_256:
        return Units("sums", 256, BLOCKS_OF_256[name], _no_rest, many=13)
    if dense and name in ("f32", "f16", "bf16"):
        return Units("rows", 64, *_float_units(name), many=5)
    return Units("rows", max(64, dtypes.get(name).block), *_expanded_units(name), many=2)


@helper
def _no_rest(weights, step, x, total, count, scratch):
    return total


def _float_units(name: str):
    nbytes = dtypes.get(name).nbytes

    @helper
    def add(weights, step, x, total, scratch):
        for i in range(0, 64, 16):
            total = fma(load_f32(weights + i * nbytes, name, 16), load_f32(x + 4 * i, "f32", 16), total)
        return total

    @helper
    def add_rest(weights, step, x, total, count, scratch):
        for i in range(0, count, 16):
            w = load_f32_first(weights + i * nbytes, name, 16, count - i)
            total = fma(w, load_f32(x + 4 * i, "f32", 16), total)
        return total

    return add, add_rest


def _expanded_units(name: str):
    expand = expander(name)
    elements = max(64, dtypes.get(name).block)

    @helper
    def add(weights, step, x, total, scratch):
        expand(weights, step, elements, scratch)
        for i in range(0, elements, 16):
            total = fma(load_f32(scratch + 4 * i, "f32", 16), load_f32(x + 4 * i, "f32", 16), total)
        return total

    @helper
    def add_rest(weights, step, x, total, count, scratch):
        expand(weights, step, count, scratch)
        for i in range(0, count, 16):
            w = load_f32_first(scratch + 4 * i, "f32", 16, count - i)
            total = fma(w, load_f32(x + 4 * i, "f32", 16), total)
        return total

    return add, add_rest
