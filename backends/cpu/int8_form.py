"""The forms in which int8 products take their operands: x row by row, and weights as panels of rows.

x       each row in blocks of 32 elements: 32 codes, the block's scale, the scale times the sum of the codes, and the
        scale times the sum of the first 16. Weights of every dtype read this one form.
few     x for interleaved weights and few columns: 32 codes that are never shifted, their scale, their sum, the sum of
        the first 16 and that of the others; all numbers float32.
panel   `rows` rows of weights in blocks of 32 elements: codes [8][rows][4], so that a vector holds four neighbours of
        each row; then float32 (int32) numbers [parts][rows] of each kind: scales, starts, and least values of dtypes
        that have them. Dtypes with a scale for every 16 elements have two parts of 16 in a block, others one of 32.

A weight is scale · code + least. Machines that multiply unsigned by signed bytes have x's codes shifted by BIAS;
sums then start at -BIAS times the sum of the weights' codes.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphrt.backends.cpu import host
from graphrt.backends.cpu.dot import has_unsigned_by_signed

ELEMENTS = 32  # of a block, in x and in panels
X_SCALE, X_SUM, X_FIRST_SUM, X_BYTES = 32, 36, 40, 44
FEW_SCALE, FEW_SUM, FEW_FIRST_SUM, FEW_SECOND_SUM, FEW_BYTES = 32, 36, 40, 44, 48


def bias() -> int:
    """What x's codes are shifted by at the present SIMD level."""
    return 128 if has_unsigned_by_signed() else 0


def has_byte_products() -> bool:
    """Whether the present SIMD level has an instruction for products of int8, four of which are added up."""
    return has_unsigned_by_signed() or host.level().has("dotprod")


@dataclass(frozen=True)
class Shape:
    """The tile of y that stays in registers: `rows` rows of w, by up to `columns` columns of x."""

    rows: int
    columns: int


_SHAPES = {"avx512": Shape(32, 6), "avx2": Shape(16, 4), "neon": Shape(16, 4), "generic": Shape(16, 2)}


def shape() -> Shape:
    """The tile that fits the registers of the present SIMD level."""
    return _SHAPES[host.level().name]


@dataclass(frozen=True)
class Panel:
    """Where the parts of a block of a panel stand.

    Args:
        rows: of the panel.
        parts: scales in a block of 32 elements, 1 or 2.
        has_least: whether weights have least values.
    """

    rows: int
    parts: int
    has_least: bool

    @property
    def line(self) -> int:
        """Bytes of a number for each row."""
        return 4 * self.rows

    @property
    def scales(self) -> int:
        return 8 * self.line

    @property
    def starts(self) -> int:
        return self.scales + self.parts * self.line

    @property
    def leasts(self) -> int:
        return self.starts + (self.parts * self.line if bias() else 0)

    @property
    def nbytes(self) -> int:
        """Bytes of a block."""
        return self.leasts + (self.parts * self.line if self.has_least else 0)
