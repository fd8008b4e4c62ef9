"""Panels of int8 codes, made of rows of weights: 16 rows at a time, one in each lane of a vector.

Interleaved rows are read as they lie. The bytes of others are transposed as they are needed, so that a vector holds the
same word of every row; from there on a dtype's function (see int8_unpack.py) works on 16 rows at once, scales included.
"""

from __future__ import annotations

from math import gcd

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from graphrt import dtypes
from graphrt.backends.cpu.dot import emit_dpbusd, has_unsigned_by_signed, join_lanes, register_bytes, split_lanes
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.int8_form import ELEMENTS, Panel, bias
from graphrt.backends.cpu.int8_unpack import UNPACK
from graphrt.backends.cpu.interleaved import Interleaved
from graphrt.backends.cpu.lanes import Codes, Lanes
from graphrt.backends.cpu.memory import load_vector
from graphrt.backends.cpu.simd import I8, I32, I64, constant, literal, shuffle
from graphrt.dtypes import ROWS

CHUNK = 32  # bytes of a row that are transposed at a time
_WORDS = ir.VectorType(I32, ROWS)


def unit_blocks(dtype: str) -> int:
    """Blocks that are unpacked together: as many as make whole words, and a chunk of them."""
    nbytes = dtypes.get(dtype).nbytes
    whole = 4 // gcd(nbytes, 4)
    return whole * -(-CHUNK // (whole * nbytes))


def unit_elements(dtype: str) -> int:
    """Elements that are unpacked together."""
    return unit_blocks(dtype) * dtypes.get(dtype).block


def panel_of(dtype: str, rows: int) -> Panel:
    """The form of panels of a dtype."""
    unpack = UNPACK[dtypes.get(dtype).plain.name]
    return Panel(rows, ELEMENTS // unpack.group, unpack.has_least)


def filler(dtype: str, rows: int):
    """A helper that writes 16 rows of a panel that has `rows`; they must have at least one unit.

    Of interleaved rows the source is the first of their blocks, and the pitch is of no use.
    """
    if dtypes.get(dtype).rows > 1:
        return _interleaved_filler(dtype, rows)
    unit, block = unit_elements(dtype), dtypes.get(dtype).block
    nbytes, panel_bytes = dtypes.get(dtype).nbytes, panel_of(dtype, rows).nbytes

    @helper
    def fill(source, pitch, count, target):
        """The first `count` elements of rows that stand `pitch` bytes apart."""
        for at in range(0, count, unit):
            start = min(at, count - unit)  # the last unit may overlap the one before
            unpack_unit(source + start // block * nbytes, pitch, target + start // ELEMENTS * panel_bytes, dtype, rows)

    return fill


def _interleaved_filler(dtype: str, rows: int):
    block, panel_bytes = dtypes.get(dtype).block, panel_of(dtype, rows).nbytes
    nbytes = ROWS * dtypes.get(dtype).nbytes

    @helper
    def fill(source, pitch, count, target):
        for at in range(0, count, block):
            unpack_interleaved(source + at // block * nbytes, target + at // ELEMENTS * panel_bytes, dtype, rows)

    return fill


@intrinsic(prefer_literal=True)
def unpack_interleaved(typingctx, source, target, dtype, rows):
    """Write a block of 16 interleaved rows to a panel of `rows` rows."""
    if literal(dtype) is None or literal(rows) is None:
        return None

    def codegen(context, builder, signature, values):
        kind = dtypes.get(literal(dtype))
        block = Block(Interleaved(builder, kind, values[0]), panel_of(kind.name, literal(rows)), values[1])
        UNPACK[kind.plain.name].function(block)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, dtype, rows), codegen


@intrinsic(prefer_literal=True)
def unpack_unit(typingctx, source, pitch, target, dtype, rows):
    """Write a unit of 16 rows, which stand `pitch` bytes apart, to a panel of `rows` rows."""
    if literal(dtype) is None or literal(rows) is None:
        return None

    def codegen(context, builder, signature, values):
        name = literal(dtype)
        blocks, form = unit_blocks(name), panel_of(name, literal(rows))
        words = _Words(builder, values[0], values[1], blocks * dtypes.get(name).nbytes)
        for number in range(blocks):
            target = builder.add(values[2], I64(number * dtypes.get(name).block // ELEMENTS * form.nbytes))
            UNPACK[name].function(Block(_Transposed(words, number * dtypes.get(name).nbytes), form, target))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, dtype, rows), codegen


class _Words:
    """The words of 16 rows, each a vector; CHUNK bytes of every row are loaded and transposed when first asked for."""

    def __init__(self, builder, source, pitch, nbytes: int) -> None:
        self.builder, self.nbytes = builder, nbytes
        self._found: dict[int, object] = {}
        pitches = [builder.mul(pitch, I64(i)) for i in range(4)]
        starts = [builder.add(source, builder.mul(pitch, I64(4 * i))) for i in range(4)]
        self._rows = [builder.add(start, step) for start in starts for step in pitches]

    def at(self, offset: int):
        """The four bytes of each row at a byte offset."""
        builder, shift = self.builder, offset % 4
        low = self._aligned(offset - shift)
        if shift == 0:
            return low
        high = self._aligned(offset - shift + 4) if offset - shift + 4 < self.nbytes else low
        low = builder.lshr(low, constant(_WORDS, 8 * shift))
        return builder.or_(low, builder.shl(high, constant(_WORDS, 32 - 8 * shift)))

    def _aligned(self, offset: int):
        if offset not in self._found:
            first = min(offset // CHUNK * CHUNK, self.nbytes - CHUNK)
            for i, word in enumerate(self._transposed(first)):
                self._found.setdefault(first + 4 * i, word)
        return self._found[offset]

    def _transposed(self, first: int) -> list:
        """The eight words of each row from byte `first` on."""
        builder = self.builder
        rows = [load_vector(builder, builder.add(row, I64(first)), I32, 8) for row in self._rows]
        # Each half of a vector is a row: rows 0 … 3 with 4 … 7, then 8 … 11 with 12 … 15.
        pairs = [join_lanes(builder, [rows[i], rows[i + 4]]) for i in (0, 1, 2, 3, 8, 9, 10, 11)]
        fours = [self._fours(pairs[:4]), self._fours(pairs[4:])]
        even, odd = [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]
        return [
            shuffle(builder, low, high, half + [16 + lane for lane in half])
            for half in (even, odd)
            for low, high in zip(*fours, strict=True)
        ]

    def _fours(self, pairs: list) -> list:
        """Of four vectors a, b, c, d: in each quarter [a, b, c, d] of its word 0; of its word 1; of 2; of 3."""
        a, b, c, d = pairs
        low, high = [0, 16, 1, 17], [2, 18, 3, 19]
        halves = [(self._by_quarter(a, b, order), self._by_quarter(c, d, order)) for order in (low, high)]
        return [self._by_quarter(*half, order) for half in halves for order in ([0, 1, 16, 17], [2, 3, 18, 19])]

    def _by_quarter(self, left, right, order: list[int]):
        """A shuffle of two vectors of 16 words that does the same in each quarter."""
        return shuffle(self.builder, left, right, [4 * quarter + lane for quarter in range(4) for lane in order])


class _Transposed:
    """A block of 16 rows that begins at some word of theirs."""

    def __init__(self, words: _Words, start: int) -> None:
        self.builder, self._words, self._start = words.builder, words, start

    def word(self, at: int) -> Lanes:
        """The four bytes of each row at an offset in the block, as int32."""
        return Lanes(self.builder, self._words.at(self._start + at))

    def half(self, at: int) -> Lanes:
        """The f16 of each row at an even offset, as float32."""
        offset = self._start + at
        return Lanes(self.builder, self._words.at(offset - offset % 4)).half(offset % 4)


class Block:
    """A block of 16 rows, for a dtype's function to read and to set (see int8_unpack.py); what is set is stored."""

    def __init__(self, source: _Transposed | Interleaved, form: Panel, target) -> None:
        self.builder, self.form, self.word, self.half = source.builder, form, source.word, source.half
        self._target = target
        self._sums: dict[int, tuple[list, int]] = {}

    def set_codes(self, index: int, codes: Codes) -> None:
        """The codes of elements 4 · index … 4 · index + 3 of each row."""
        signed = codes.signed
        self._store(index // 8, index % 8 * self.form.line, signed)
        if has_unsigned_by_signed():
            self._add_to_start(index, signed)

    def set_scale(self, group: int, scale: Lanes) -> None:
        """The scale of a group of elements, float32."""
        block, part = divmod(group, self.form.parts)
        self._store(block, self.form.scales + part * self.form.line, scale.value)

    def set_least(self, group: int, least: Lanes) -> None:
        """The least value of a group of elements, float32: that of code 0."""
        block, part = divmod(group, self.form.parts)
        self._store(block, self.form.leasts + part * self.form.line, least.value)

    def _store(self, block: int, at: int, value) -> None:
        place = self.builder.add(self._target, I64(block * self.form.nbytes + at))
        self.builder.store(value, self.builder.inttoptr(place, value.type.as_pointer()), align=4)

    def _add_to_start(self, index: int, codes) -> None:
        """Add up BIAS times the codes of a group, and store minus that with its last ones."""
        builder, per_group, register = self.builder, 8 // self.form.parts, register_bytes()
        group = index // per_group
        sums, seen = self._sums.pop(group, ([constant(ir.VectorType(I32, register // 4), 0)] * (64 // register), 0))
        biases = constant(ir.VectorType(I8, register), bias())
        parts = split_lanes(builder, codes, register)
        sums = [emit_dpbusd(builder, total, biases, part) for total, part in zip(sums, parts, strict=True)]
        if seen + 1 < per_group:
            self._sums[group] = sums, seen + 1
            return
        block, part = divmod(group, self.form.parts)
        start = builder.sub(constant(_WORDS, 0), join_lanes(builder, sums))
        self._store(block, self.form.starts + part * self.form.line, start)
