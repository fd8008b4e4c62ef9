"""Products of 16 interleaved rows of weights with one, two or four columns of x, in int8.

A lane is a row, so that x's numbers go to all lanes and no sum has to be taken across them at the end. Codes are
multiplied as they are unpacked; the functions of int8_unpack.py say what they are. x is in the form "interleaved".
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from graphrt import dtypes
from graphrt.backends.cpu.codes import add_signed, by_register
from graphrt.backends.cpu.dot import emit_dpbusd, has_unsigned_by_signed
from graphrt.backends.cpu.int8_form import ELEMENTS, FEW_BYTES, FEW_FIRST_SUM, FEW_SCALE, FEW_SECOND_SUM, FEW_SUM
from graphrt.backends.cpu.int8_unpack import UNPACK
from graphrt.backends.cpu.interleaved import Interleaved
from graphrt.backends.cpu.lanes import Codes, Lanes
from graphrt.backends.cpu.memory import emit_prefetch
from graphrt.backends.cpu.simd import F32, I8, I32, I64, Vector, broadcast, constant, literal
from graphrt.backends.cpu.tile import loop, multiply_add
from graphrt.dtypes import ROWS

LINE = 64  # bytes of a cache line
AHEAD = 8192  # bytes: measured; the processor's own prefetching, which stops at pages, leaves 5 to 25 % to gain
_WORDS, _FLOATS = ir.VectorType(I32, ROWS), ir.VectorType(F32, ROWS)


@intrinsic(prefer_literal=True)
def multiply_interleaved(typingctx, weights, blocks, columns, end, following, dtype):
    """The products of 16 rows with each column, a vector for each.

    Args: weights, `blocks` blocks of each row; columns, a tuple of the addresses of x's rows; end, following: memory is
          asked for AHEAD of the rows, up to its end, and then what follows; dtype, a constant.
    """
    if literal(dtype) is None or not isinstance(columns, types.UniTuple):
        return None
    result = types.UniTuple(Vector("f32", ROWS), columns.count)

    def codegen(context, builder, signature, values):
        weights, blocks, columns, end, following, _ = values
        kind = dtypes.get(literal(dtype))
        starts = [builder.extract_value(columns, i) for i in range(result.count)]

        def body(number, sums):
            at = builder.add(weights, builder.mul(number, I64(ROWS * kind.nbytes)))
            x_at = builder.mul(number, I64(kind.block // ELEMENTS * FEW_BYTES))
            ahead = builder.add(at, I64(AHEAD))
            beyond = builder.add(following, builder.sub(ahead, end))
            ahead = builder.select(builder.icmp_unsigned("<", ahead, end), ahead, beyond)
            lines = _Lines(builder, ahead, ROWS * kind.nbytes)
            source = Interleaved(builder, kind, at, before_load=lines.ask_for_next)
            block = Products(source, kind.plain.name, [builder.add(start, x_at) for start in starts], list(sums))
            UNPACK[kind.plain.name].function(block)
            lines.ask_for_rest()
            return block.sums

        totals = loop(builder, blocks, 1, [constant(_FLOATS, 0.0)] * result.count, body)
        return context.make_tuple(builder, signature.return_type, totals)

    return result(types.int64, types.int64, columns, types.int64, types.int64, dtype), codegen


class _Lines:
    """The cache lines that a block asks for, in ascending order, one before each of its loads.

    LLVM would put them all at the block's beginning, and the loads in an order of its own: where it may not, a fifth
    more comes from memory (measured). Empty assembly that could touch memory keeps loads before and behind it.
    """

    def __init__(self, builder, start, nbytes: int) -> None:
        self.builder, self._start, self._nbytes, self._next = builder, start, nbytes, 0

    def ask_for_next(self) -> None:
        if self._next >= self._nbytes:
            return
        self.builder.asm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", [], True)
        emit_prefetch(self.builder, self.builder.add(self._start, I64(self._next)), level=1)
        self._next += LINE

    def ask_for_rest(self) -> None:
        while self._next < self._nbytes:
            self.ask_for_next()


class Products:
    """A block of 16 rows, for a dtype's function to read and to set (see int8_unpack.py); codes are multiplied.

    Attributes:
        sums: for each column, the products with it so far.
    """

    def __init__(self, source: Interleaved, name: str, columns: list, sums: list) -> None:
        self.builder, self.word, self.half = source.builder, source.word, source.half
        self.sums, self._columns, self._group = sums, columns, UNPACK[name].group
        self._scales: dict[int, Lanes] = {}
        self._leasts: dict[int, Lanes] = {}
        self._dots: dict[int, tuple[list, int]] = {}
        self._parts: dict[int, list] = {}

    def set_scale(self, group: int, scale: Lanes) -> None:
        """The scale of a group of elements, float32."""
        self._scales[group] = scale

    def set_least(self, group: int, least: Lanes) -> None:
        """The least value of a group of elements, float32: that of code 0."""
        self._leasts[group] = least

    def set_codes(self, index: int, codes: Codes) -> None:
        """The codes of elements 4 · index … 4 · index + 3 of each row; scales are set before them."""
        weights, offset, dot = codes.signed, 0, add_signed
        if has_unsigned_by_signed():
            (weights, offset), dot = codes.unsigned, emit_dpbusd
        group, of_group = 4 * index // self._group, self._group // 4
        totals, seen = self._dots.pop(group, ([constant(_WORDS, 0)] * len(self._columns), 0))
        for i, column in enumerate(self._columns):
            x = self._number(column, index // 8 * FEW_BYTES + index % 8 * 4, I32)
            x = self.builder.bitcast(x, ir.VectorType(I8, 4 * ROWS))
            totals[i] = by_register(self.builder, [totals[i], weights, x], dot)
        if seen + 1 < of_group:
            self._dots[group] = totals, seen + 1
        else:
            self._finish(group, totals, offset)

    def _finish(self, group: int, totals: list, offset: int) -> None:
        """Add the group's products: (scale · (Σ codes · x - offset · Σ x) + least · Σ x) · the scale of x."""
        block, part = divmod(group, ELEMENTS // self._group)
        sum_at = FEW_SUM if self._group == ELEMENTS else (FEW_FIRST_SUM, FEW_SECOND_SUM)[part]
        other_part = self._parts.pop(block, None)
        products = []
        for i, (column, total) in enumerate(zip(self._columns, totals, strict=True)):
            x_sum = self._number(column, block * FEW_BYTES + sum_at, F32)
            product = self.builder.sitofp(total, _FLOATS)
            if offset:
                product = multiply_add(self.builder, x_sum, constant(_FLOATS, -float(offset)), product)
            if other_part is None:
                product = self.builder.fmul(product, self._scales[group].value)
            else:
                product = multiply_add(self.builder, product, self._scales[group].value, other_part[i])
            if group in self._leasts:
                product = multiply_add(self.builder, x_sum, self._leasts[group].value, product)
            products.append(product)
        if self._group < ELEMENTS and other_part is None:
            self._parts[block] = products
            return
        for i, column in enumerate(self._columns):
            scale = self._number(column, block * FEW_BYTES + FEW_SCALE, F32)
            self.sums[i] = multiply_add(self.builder, products[i], scale, self.sums[i])

    def _number(self, column, at: int, element: ir.Type):
        """A number of x, in every lane."""
        place = self.builder.inttoptr(self.builder.add(column, I64(at)), element.as_pointer())
        return broadcast(self.builder, self.builder.load(place, align=4), ROWS)
