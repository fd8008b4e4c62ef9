"""Vectors with operators for code that emits LLVM directly, as simd.py has them for code that Numba compiles."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from llvmlite import ir

from graphrt.backends.cpu.dot import SIGN_OFFSET, emit_lookup
from graphrt.backends.cpu.memory import widen
from graphrt.backends.cpu.simd import F32, I8, I16, constant


class Lanes:
    """A vector of bytes, int32 or float32 while code is emitted; numbers stand for vectors of them."""

    def __init__(self, builder, value) -> None:
        self.builder, self.value = builder, value

    def _with(self, value) -> Lanes:
        return Lanes(self.builder, value)

    def _other(self, other: Lanes | int):
        return other.value if isinstance(other, Lanes) else constant(self.value.type, other)

    @property
    def _is_float(self) -> bool:
        return self.value.type.element == F32

    def __and__(self, other: Lanes | int) -> Lanes:
        return self._with(self.builder.and_(self.value, self._other(other)))

    def __or__(self, other: Lanes | int) -> Lanes:
        return self._with(self.builder.or_(self.value, self._other(other)))

    def __lshift__(self, count: int) -> Lanes:
        return self._with(self.builder.shl(self.value, self._other(count))) if count else self

    def __rshift__(self, count: int) -> Lanes:
        """Zeros come in from the left."""
        return self._with(self.builder.lshr(self.value, self._other(count))) if count else self

    def __sub__(self, other: Lanes | int) -> Lanes:
        subtract = self.builder.fsub if self._is_float else self.builder.sub
        return self._with(subtract(self.value, self._other(other)))

    def __mul__(self, other: Lanes | int) -> Lanes:
        multiply = self.builder.fmul if self._is_float else self.builder.mul
        return self._with(multiply(self.value, self._other(other)))

    def __neg__(self) -> Lanes:
        return self._with(self.builder.fneg(self.value))

    def bytes(self) -> Codes:
        """The same bits as codes of one byte, 0 … 255."""
        return Codes(self.builder, self.builder.bitcast(self.value, self._of(I8)))

    def _of_lanes(self, element: ir.Type) -> ir.VectorType:
        return ir.VectorType(element, self.value.type.count)

    def _of(self, element: ir.Type) -> ir.VectorType:
        kind = self.value.type
        return ir.VectorType(element, kind.count * kind.element.width // element.width)

    def byte(self, number: int) -> Lanes:
        """One byte of every int32, 0 … 255."""
        return self >> 24 if number == 3 else (self >> 8 * number) & 0xFF

    def signed_byte(self, number: int) -> Lanes:
        """One byte of every int32, -128 … 127."""
        return self._with(self.builder.ashr((self << 8 * (3 - number)).value, self._other(24)))

    def half(self, first: int) -> Lanes:
        """The f16 that begins at byte 0 or 2 of every int32, as float32."""
        halves = self.builder.trunc((self >> 8 * first).value, self._of_lanes(I16))
        return self._with(widen(self.builder, halves, "f16"))

    def floats(self) -> Lanes:
        """Int32 as float32."""
        return self._with(self.builder.sitofp(self.value, self._of_lanes(F32)))

    def powers_of_two(self) -> Lanes:
        """2^(e - 128) of int32 exponents e, 0 … 255; the two least are subnormal numbers."""
        builder, kind = self.builder, self.value.type
        tiny = builder.shl(constant(kind, 0x00200000), (self & 1).value)
        is_tiny = builder.icmp_unsigned("<", self.value, constant(kind, 2))
        bits = builder.select(is_tiny, tiny, ((self - 1) << 23).value)
        return self._with(builder.bitcast(bits, self._of_lanes(F32)))


@dataclass(frozen=True)
class Codes:
    """Codes of weights, a byte each, for machines that want them signed, and for those that want them unsigned.

    Args:
        raw: a vector of bytes, 0 … 255.
        offset: what they are greater by than the codes.
        table: where given, the codes of bytes 0 … 15.
    """

    builder: Any
    raw: Any
    offset: int = 0
    table: tuple[int, ...] = ()

    def __sub__(self, offset: int) -> Codes:
        return replace(self, offset=self.offset + offset)

    def twos_complement(self) -> Codes:
        """The same bytes read as signed ones."""
        return Codes(self.builder, self.builder.xor(self.raw, constant(self.raw.type, SIGN_OFFSET)), SIGN_OFFSET)

    def looked_up(self, table: tuple[int, ...]) -> Codes:
        """For each byte 0 … 15 the entry of a table of 16 signed bytes."""
        return replace(self, table=table)

    @property
    def signed(self):
        """A vector of the codes."""
        if self.table:
            return emit_lookup(self.builder, self.raw, list(self.table))
        return self.builder.sub(self.raw, constant(self.raw.type, self.offset)) if self.offset else self.raw

    @property
    def unsigned(self) -> tuple[Any, int]:
        """A vector of unsigned bytes, and what they are greater by than the codes."""
        if self.table:
            return emit_lookup(self.builder, self.raw, [entry + SIGN_OFFSET for entry in self.table]), SIGN_OFFSET
        return self.raw, self.offset
