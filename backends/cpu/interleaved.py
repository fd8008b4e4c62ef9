"""Blocks of 16 interleaved rows (see graphrt/interleaved.py), whose words are vectors as they lie in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from graphrt.backends.cpu.lanes import Lanes
from graphrt.backends.cpu.memory import load_vector, widen
from graphrt.backends.cpu.simd import I16, I32, I64
from graphrt.dtypes import ROWS, DType


class Interleaved:
    """A block of each row, at some address.

    Args:
        before_load: is called when bytes are read for the first time, to emit what comes before.
    """

    def __init__(self, builder, dtype: DType, address, before_load: Callable[[], Any] = lambda: None) -> None:
        self.builder, self._address, self._before_load = builder, address, before_load
        self._first, self._last = dtype.words
        self._read: set[int] = set()

    def word(self, at: int) -> Lanes:
        """The four bytes of each row at an offset in the block, as int32; before the words, only those before them."""
        if at < self._first:
            return Lanes(self.builder, self.builder.zext(self._load(0, ir.IntType(8 * self._first)), _WORDS))
        assert (at - self._first) % 4 == 0, f"a word at byte {at} would not lie in one piece"
        return Lanes(self.builder, self._load(at, I32))

    def half(self, at: int) -> Lanes:
        """The f16 of each row at an even offset, as float32."""
        if self._first <= at < self._last:
            within = (at - self._first) % 4
            return self.word(at - within).half(within)
        return Lanes(self.builder, widen(self.builder, self._load(at, I16), "f16"))

    def _load(self, at: int, element: ir.Type):
        if at not in self._read:
            self._read.add(at)
            self._before_load()
        return load_vector(self.builder, self.builder.add(self._address, I64(ROWS * at)), element, ROWS)


_WORDS = ir.VectorType(I32, ROWS)
