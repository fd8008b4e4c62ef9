"""Dot products of a row of weights with prepared rows of x, a unit of the row at a time, for products with few columns.

A unit of weights is unpacked once (`Units.load`) and then multiplied with the same unit of each column's x
(`Units.add`). Dtypes with int8 products have theirs in vecdot_32.py and vecdot_256.py; rows whose elements do not lie
side by side are expanded to float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from graphrt import dtypes
from graphrt.backends.cpu.dequant import expander
from graphrt.backends.cpu.dot import store_bytes
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.memory import load_f32, load_f32_first, load_integer, store_integer
from graphrt.backends.cpu.simd import fma, splat
from graphrt.backends.cpu.vecdot_32 import BLOCKS_OF_32, byte_units
from graphrt.backends.cpu.vecdot_256 import BLOCKS_OF_256, sum_units


@dataclass(frozen=True)
class Units:
    """How rows of one weight dtype are multiplied.

    Args:
        form: of the prepared x.
        elements, nbytes: of a unit of weights.
        load: helper (weights, step, scratch) -> a unit of weights, in registers; `step` bytes between elements or
            blocks.
        load_rest: the same for the last `count` elements of a row that is no whole number of units.
        add: helper (unit, x, total) -> total, a vector of 16 partial sums, and the unit's products with x.
        many: columns from which the way for many columns is faster (measured).
        many_wide: the same of rows so long that several prepared ones of x leave no room in the nearest cache.
    """

    form: str
    elements: int
    nbytes: int
    load: Any
    load_rest: Any
    add: Any
    many: int
    many_wide: int


@cache
def units_of(name: str, dense: bool) -> Units:
    """The way to multiply rows of the dtype of that name; `dense` says whether a row's elements lie side by side."""
    nbytes = dtypes.get(name).nbytes
    if dense and name in BLOCKS_OF_32:
        load, add = byte_units(BLOCKS_OF_32[name])
        return Units("bytes", 128, 4 * nbytes, load, _copied_rest(load, nbytes), add, many=8, many_wide=3)
    if dense and name in BLOCKS_OF_256:
        load, add = sum_units(BLOCKS_OF_256[name])
        return Units("sums", 256, nbytes, load, _no_rest(load), add, many=9, many_wide=5)
    if dense and name in ("f32", "f16", "bf16"):
        many, many_wide = {"f32": (9, 9), "f16": (5, 7), "bf16": (6, 3)}[name]
        return Units("rows", 64, 64 * nbytes, *_float_units(name), many=many, many_wide=many_wide)
    return Units("rows", max(64, dtypes.get(name).block), 0, *_expanded_units(name), many=2, many_wide=2)


def _no_rest(load: Any) -> Any:
    @helper
    def load_rest(weights, step, count, scratch):
        return load(weights, step, scratch)

    return load_rest


def _copied_rest(load: Any, nbytes: int) -> Any:
    """One to three blocks of 32 are copied into the scratch memory, where zeros follow them."""

    @helper
    def load_rest(weights, step, count, scratch):
        for i in range(0, 4 * nbytes, 64):
            store_bytes(scratch + i, splat(np.int8(0), 64))
        for i in range(count // 32 * nbytes):
            store_integer(scratch + i, "i8", load_integer(weights + i, "i8"))
        return load(scratch, step, scratch)

    return load_rest


def _float_units(name: str) -> tuple[Any, Any, Any]:
    nbytes = dtypes.get(name).nbytes

    @helper
    def load(weights, step, scratch):
        return (
            load_f32(weights, name, 16),
            load_f32(weights + 16 * nbytes, name, 16),
            load_f32(weights + 32 * nbytes, name, 16),
            load_f32(weights + 48 * nbytes, name, 16),
        )

    @helper
    def load_rest(weights, step, count, scratch):
        return (
            load_f32_first(weights, name, 16, count),
            load_f32_first(weights + 16 * nbytes, name, 16, count - 16),
            load_f32_first(weights + 32 * nbytes, name, 16, count - 32),
            load_f32_first(weights + 48 * nbytes, name, 16, count - 48),
        )

    return load, load_rest, _add_floats


@helper
def _add_floats(unit, x, total):
    a, b, c, d = unit
    total = fma(a, load_f32(x, "f32", 16), total)
    total = fma(b, load_f32(x + 64, "f32", 16), total)
    total = fma(c, load_f32(x + 128, "f32", 16), total)
    return fma(d, load_f32(x + 192, "f32", 16), total)


def _expanded_units(name: str) -> tuple[Any, Any, Any]:
    expand = expander(name)
    elements = max(64, dtypes.get(name).block)

    @helper
    def load(weights, step, scratch):
        expand(weights, step, elements, scratch)
        return scratch

    @helper
    def load_rest(weights, step, count, scratch):
        for i in range(0, 4 * elements, 64):
            store_bytes(scratch + i, splat(np.int8(0), 64))
        expand(weights, step, count, scratch)
        return scratch

    @helper
    def add(unit, x, total):
        for i in range(0, elements, 16):
            total = fma(load_f32(unit + 4 * i, "f32", 16), load_f32(x + 4 * i, "f32", 16), total)
        return total

    return load, load_rest, add
