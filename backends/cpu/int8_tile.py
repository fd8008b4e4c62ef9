"""The inner loop of int8 products: a panel of weights by a few columns of x, in registers."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from graphrt.backends.cpu import host
from graphrt.backends.cpu.dot import emit_dpbusd, has_unsigned_by_signed, multiply_pairs, plain_dot, register_bytes
from graphrt.backends.cpu.grouping import COLUMN_BYTES
from graphrt.backends.cpu.helpers import helper
from graphrt.backends.cpu.int8_form import X_BYTES, X_FIRST_SUM, X_SCALE, X_SUM, Panel
from graphrt.backends.cpu.memory import emit_prefetch, load_vector
from graphrt.backends.cpu.simd import F32, I8, I32, I64, broadcast, call, constant, literal
from graphrt.backends.cpu.tile import loop, multiply_add

LINES_AHEAD = 8  # cache lines asked for with every block


@intrinsic(prefer_literal=True)
def multiply_codes(
    typingctx, panel, blocks, x, x_pitch, entries, last, target, ahead, step, rows, parts, least, columns
):
    """target[c, r] = sum over blocks of panel[r] · x[c], in float32.

    Args: panel, `blocks` blocks of it (see int8_form.py); x, with rows `x_pitch` bytes apart, whose numbers stand at
          `entries`, one for each column (see grouping.py); the number `last` of the last column that exists, which
          stands in for those beyond; target [columns, rows] float32; `ahead`, memory to bring near, `step` bytes with
          each block. The last four are constants.
    """
    constants = [literal(item) for item in (rows, parts, least, columns)]
    if None in constants:
        return None
    signature = types.void(*[types.int64] * 9, rows, parts, least, columns)

    def codegen(context, builder, signature, values):
        _Tile(builder, Panel(*constants[:3]), constants[3]).emit(*values[:9])
        return context.get_dummy_value()

    return signature, codegen


class _Tile:
    """One tile while its code is generated. Its vectors are registers: `lanes` rows each."""

    def __init__(self, builder, panel: Panel, columns: int) -> None:
        self.builder, self.panel, self.columns = builder, panel, columns
        self.lanes = register_bytes() // 4
        self.vectors = range(panel.rows // self.lanes)
        self.words, self.floats = ir.VectorType(I32, self.lanes), ir.VectorType(F32, self.lanes)

    def emit(self, panel, blocks, x, x_pitch, entries, last, target, ahead, step) -> None:
        builder = self.builder
        columns = [self._column(x, x_pitch, entries, last, c) for c in range(self.columns)]
        zeros = [constant(self.floats, 0.0)] * (self.columns * len(self.vectors))

        def body(block, sums):
            near = builder.add(ahead, builder.mul(block, step))
            for line in range(LINES_AHEAD):
                emit_prefetch(builder, builder.add(near, I64(64 * line)))
            x_at = builder.mul(block, I64(X_BYTES))
            return self._block(
                builder.add(panel, builder.mul(block, I64(self.panel.nbytes))),
                [builder.add(column, x_at) for column in columns],
                list(sums),
            )

        totals = iter(loop(builder, blocks, 1, zeros, body))
        for c in range(self.columns):
            for v in self.vectors:
                place = builder.add(target, I64(self.panel.line * c + 4 * self.lanes * v))
                builder.store(next(totals), builder.inttoptr(place, self.floats.as_pointer()), align=4)

    def _column(self, x, x_pitch, entries, last, number: int):
        """The address of a column's row of x."""
        builder = self.builder
        within = builder.icmp_signed("<", I64(number), last)
        entry = builder.add(entries, builder.mul(builder.select(within, I64(number), last), I64(COLUMN_BYTES)))
        row = builder.load(builder.inttoptr(entry, I64.as_pointer()), align=8)
        return builder.add(x, builder.mul(row, x_pitch))

    def _block(self, panel, columns, sums):
        """Add the products of a block to the sums, which are in the order of columns, then vectors."""
        builder, form = self.builder, self.panel
        scaled = [None] * len(sums)
        for part in range(form.parts):
            scales = self._numbers(panel, form.scales + part * form.line, F32) * self.columns
            for at, total in enumerate(self._dots(panel, columns, part)):
                floats = builder.sitofp(total, self.floats)
                if part == 0:
                    scaled[at] = builder.fmul(floats, scales[at])
                else:
                    scaled[at] = multiply_add(builder, floats, scales[at], scaled[at])
        sums = self._add_times(scaled, columns, X_SCALE, sums)
        return self._add_leasts(panel, columns, sums) if form.has_least else sums

    def _dots(self, panel, columns, part: int) -> list:
        """The whole numbers: the sums of products of codes."""
        steps = 8 // self.panel.parts
        totals = self._starts(panel, part) * self.columns
        for i in range(part * steps, (part + 1) * steps):
            weights = [self._prepared(self._load(panel, i * self.panel.line, v, I8)) for v in self.vectors]
            for c in range(self.columns):
                codes = self._broadcast(columns[c], 4 * i, I32)
                for v in self.vectors:
                    at = c * len(self.vectors) + v
                    totals[at] = self._dot(totals[at], weights[v], codes)
        return totals

    def _add_leasts(self, panel, columns, sums):
        """Add the least values times sums of x: those of the whole block, and the difference of the first half's."""
        form = self.panel
        leasts = [self._numbers(panel, form.leasts + part * form.line, F32) for part in range(form.parts)]
        sums = self._add_times(leasts[-1] * self.columns, columns, X_SUM, sums)
        if form.parts == 2:
            more = [self.builder.fsub(first, second) for first, second in zip(*leasts, strict=True)]
            sums = self._add_times(more * self.columns, columns, X_FIRST_SUM, sums)
        return sums

    def _add_times(self, values, columns, at: int, sums):
        """Add values, in the order of sums, times the number that stands `at` bytes into each column's block."""
        factors = [self._broadcast(column, at, F32) for column in columns for _ in self.vectors]
        return [multiply_add(self.builder, *each) for each in zip(values, factors, sums, strict=True)]

    def _starts(self, panel, part: int) -> list:
        if has_unsigned_by_signed():
            return self._numbers(panel, self.panel.starts + part * self.panel.line, I32)
        return [constant(self.words, 0)] * len(self.vectors)

    def _numbers(self, panel, at: int, element: ir.Type) -> list:
        return [self._load(panel, at, v, element) for v in self.vectors]

    def _load(self, address, at: int, vector: int, element: ir.Type):
        lanes = 4 * self.lanes if element == I8 else self.lanes
        place = self.builder.add(address, I64(at + 4 * self.lanes * vector))
        return load_vector(self.builder, place, element, lanes)

    def _broadcast(self, address, at: int, element: ir.Type):
        place = self.builder.inttoptr(self.builder.add(address, I64(at)), element.as_pointer())
        return broadcast(self.builder, self.builder.load(place, align=4), self.lanes)

    def _prepared(self, weights):
        """What `_dot` wants of a vector of weights."""
        if has_unsigned_by_signed() or host.level().name not in ("avx512", "avx2"):
            return weights
        zero = constant(weights.type, 0)
        negative = self.builder.icmp_signed("<", weights, zero)
        return negative, self.builder.select(negative, self.builder.sub(zero, weights), weights)

    def _dot(self, total, weights, codes):
        """total + the products of four codes of each row with four of x."""
        builder, level = self.builder, host.level()
        x = builder.bitcast(codes, ir.VectorType(I8, 4 * self.lanes))
        if has_unsigned_by_signed():
            return emit_dpbusd(builder, total, x, weights)
        if level.name in ("avx512", "avx2"):
            # |w| · (sign of w · x): a pair of products is at most 2 · 128 · 127, so it does not saturate int16.
            negative, magnitude = weights
            signed = builder.select(negative, builder.sub(constant(x.type, 0), x), x)
            return builder.add(total, multiply_pairs(builder, magnitude, signed))
        if level.has("dotprod"):
            return call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", total.type, total, weights, x)
        return builder.add(total, plain_dot(builder, weights, x))


def multiply_up_to(rows: int, parts: int, least: bool, columns: int):
    """A helper: multiply_codes for 1 … columns columns, by the least of a few compiled widths that holds them."""
    three, half, quarter = 3 * columns // 4, columns // 2, columns // 4

    @helper
    def multiply(panel, blocks, x, pitch, entries, count, target, ahead, step):
        last = count - 1
        if count > three:
            multiply_codes(panel, blocks, x, pitch, entries, last, target, ahead, step, rows, parts, least, columns)
        elif count > half:
            multiply_codes(panel, blocks, x, pitch, entries, last, target, ahead, step, rows, parts, least, three)
        elif count > quarter:
            multiply_codes(panel, blocks, x, pitch, entries, last, target, ahead, step, rows, parts, least, half)
        elif count > 1:
            multiply_codes(panel, blocks, x, pitch, entries, last, target, ahead, step, rows, parts, least, quarter)
        else:
            multiply_codes(panel, blocks, x, pitch, entries, last, target, ahead, step, rows, parts, least, 1)

    return multiply
