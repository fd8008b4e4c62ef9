"""How each quantized dtype yields signed codes, scales and least values: one function per dtype, for 16 rows at once.

A function reads its block's bytes by `block.word` and `block.half`, whose lanes are rows, and sets, for each four
neighbouring elements, a vector of codes, and for each group of elements a scale and, where the dtype has them, a least
value: an element is scale · code + least. The layouts of the blocks are ggml's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from graphrt.backends.cpu.dequant import IQ4_LEVELS, MXFP4_LEVELS


@dataclass(frozen=True)
class Unpack:
    """How a dtype is unpacked.

    Args:
        function: sets the codes, scales and least values of a block.
        group: elements that share a scale, 16 or 32.
        has_least: whether there are least values.
    """

    function: Callable[[Any], None]
    group: int = 32
    has_least: bool = False


# ---- blocks of 32 ----------------------------------------------------------------------------------------------------


def _q8_0(block: Any) -> None:
    """Scale f16, codes[32]."""
    block.set_scale(0, block.half(0))
    for i in range(8):
        block.set_codes(i, block.word(2 + 4 * i).bytes().twos_complement())


def _nibbles(block: Any, at: int) -> Iterator[tuple[int, Any]]:
    """16 bytes of nibbles, as the words of the first 16 elements, which are the low ones, and of the others."""
    for i in range(4):
        packed = block.word(at + 4 * i)
        yield i, packed & 0x0F0F0F0F
        yield i + 4, packed >> 4 & 0x0F0F0F0F


def _q4_0(block: Any) -> None:
    """Scale f16, nibbles[16]."""
    block.set_scale(0, block.half(0))
    for i, codes in _nibbles(block, 2):
        block.set_codes(i, codes.bytes() - 8)


def _q4_1(block: Any) -> None:
    """Scale f16, least f16, nibbles[16]."""
    block.set_scale(0, block.half(0))
    block.set_least(0, block.half(2))
    for i, codes in _nibbles(block, 4):
        block.set_codes(i, codes.bytes())


def _fifth_bits(bits: Any, first: int) -> Any:
    """Bits first … first + 3 of every word, each in its own byte as 0 or 16."""
    return ((bits >> first & 15) * 0x00204081 & 0x01010101) << 4


def _q5_0(block: Any) -> None:
    """Scale f16, fifth bits[32], nibbles[16]."""
    block.set_scale(0, block.half(0))
    high = block.word(2)
    for i, codes in _nibbles(block, 6):
        block.set_codes(i, (codes | _fifth_bits(high, 4 * i)).bytes() - 16)


def _q5_1(block: Any) -> None:
    """Scale f16, least f16, fifth bits[32], nibbles[16]."""
    block.set_scale(0, block.half(0))
    block.set_least(0, block.half(2))
    high = block.word(4)
    for i, codes in _nibbles(block, 8):
        block.set_codes(i, (codes | _fifth_bits(high, 4 * i)).bytes())


def _iq4_nl(block: Any) -> None:
    """Scale f16, nibbles[16] that name levels."""
    block.set_scale(0, block.half(0))
    for i, codes in _nibbles(block, 2):
        block.set_codes(i, codes.bytes().looked_up(IQ4_LEVELS))


def _mxfp4(block: Any) -> None:
    """Exponent, nibbles[16] that name levels."""
    block.set_scale(0, block.word(0).byte(0).powers_of_two())
    for i, codes in _nibbles(block, 1):
        block.set_codes(i, codes.bytes().looked_up(MXFP4_LEVELS))


# ---- blocks of 256, a scale for every 32 -----------------------------------------------------------------------------


def _set_k_scales(block: Any) -> None:
    """d f16, dmin f16, and in 12 bytes the 6-bit scales and minima of 8 groups."""
    d, least = block.half(0), -block.half(2)
    a, b, c = block.word(4), block.word(8), block.word(12)
    scales = a & 0x3F3F3F3F, c & 0x0F0F0F0F | (a >> 6 & 0x03030303) << 4
    minima = b & 0x3F3F3F3F, c >> 4 & 0x0F0F0F0F | (b >> 6 & 0x03030303) << 4
    for group in range(8):
        block.set_scale(group, d * scales[group // 4].byte(group % 4).floats())
        block.set_least(group, least * minima[group // 4].byte(group % 4).floats())


def _q4_k(block: Any) -> None:
    """Scales and minima, then nibbles[128]: of 32 bytes the low ones are a group, the high ones the next."""
    _set_k_scales(block)
    for pair in range(4):
        for i in range(8):
            packed = block.word(16 + 32 * pair + 4 * i)
            block.set_codes(16 * pair + i, (packed & 0x0F0F0F0F).bytes())
            block.set_codes(16 * pair + 8 + i, (packed >> 4 & 0x0F0F0F0F).bytes())


def _q5_k(block: Any) -> None:
    """Scales and minima, fifth bits[32] of which a byte holds those of 8 groups, nibbles[128] as in q4_k."""
    _set_k_scales(block)
    for pair in range(4):
        for i in range(8):
            packed, high = block.word(48 + 32 * pair + 4 * i), block.word(16 + 4 * i)
            low_fifth, high_fifth = ((high >> 2 * pair + half & 0x01010101) << 4 for half in range(2))
            block.set_codes(16 * pair + i, (packed & 0x0F0F0F0F | low_fifth).bytes())
            block.set_codes(16 * pair + 8 + i, (packed >> 4 & 0x0F0F0F0F | high_fifth).bytes())


def _iq4_xs(block: Any) -> None:
    """d f16, high two bits of 8 scales, their low nibbles[4], nibbles[128] that name levels."""
    d, high, low = block.half(0), block.word(0) >> 16, block.word(4)
    for group in range(8):
        scale = (low >> 4 * group & 15 | (high >> 2 * group & 3) << 4) - 32
        block.set_scale(group, d * scale.floats())
        for i, codes in _nibbles(block, 8 + 16 * group):
            block.set_codes(8 * group + i, codes.bytes().looked_up(IQ4_LEVELS))


# ---- blocks of 256, a scale for every 16 -----------------------------------------------------------------------------


def _word_of_half() -> Iterator[tuple[int, int]]:
    """The words of each half of a block; in one of two bits, the lowest two are of the first 32 elements, and so on."""
    return product(range(2), range(8))


def _q2_k(block: Any) -> None:
    """4-bit scale and minimum of 16 groups [16], codes[64] of two bits, d f16, dmin f16."""
    d, least = block.half(80), -block.half(82)
    for group in range(16):
        packed = block.word(group // 4 * 4).byte(group % 4)
        block.set_scale(group, d * (packed & 15).floats())
        block.set_least(group, least * (packed >> 4).floats())
    for half, i in _word_of_half():
        packed = block.word(16 + 32 * half + 4 * i)
        for quarter in range(4):
            block.set_codes(32 * half + 8 * quarter + i, (packed >> 2 * quarter & 0x03030303).bytes())


def _q3_k(block: Any) -> None:
    """Third bits[32] of which a byte holds those of 8 groups, codes[64] of two bits, 6-bit scales[12], d f16."""
    d, low, high = block.half(108), (block.word(96), block.word(100)), block.word(104)
    for group in range(16):
        nibbles, bits = low[group // 4 % 2] >> group // 8 * 4, high >> group // 4 * 2
        scales = nibbles & 0x0F0F0F0F | (bits & 0x03030303) << 4
        block.set_scale(group, d * (scales.byte(group % 4) - 32).floats())
    for half, i in _word_of_half():
        packed, thirds = block.word(32 + 32 * half + 4 * i), block.word(4 * i) >> 4 * half
        for quarter in range(4):
            codes = packed >> 2 * quarter & 0x03030303 | (thirds >> quarter & 0x01010101) << 2
            block.set_codes(32 * half + 8 * quarter + i, codes.bytes() - 4)


def _q6_k(block: Any) -> None:
    """Low nibbles[128], high two bits[64], scales[16] int8, d f16."""
    d = block.half(208)
    for group in range(16):
        block.set_scale(group, d * block.word(192 + group // 4 * 4).signed_byte(group % 4).floats())
    for half, i in _word_of_half():
        low = block.word(64 * half + 4 * i), block.word(64 * half + 32 + 4 * i)
        high = block.word(128 + 32 * half + 4 * i)
        for quarter in range(4):
            nibbles = low[quarter % 2] >> quarter // 2 * 4 & 0x0F0F0F0F
            codes = nibbles | (high >> 2 * quarter & 0x03030303) << 4
            block.set_codes(32 * half + 8 * quarter + i, codes.bytes() - 32)


UNPACK = {
    "q8_0": Unpack(_q8_0),
    "q4_0": Unpack(_q4_0),
    "q4_1": Unpack(_q4_1, has_least=True),
    "q5_0": Unpack(_q5_0),
    "q5_1": Unpack(_q5_1, has_least=True),
    "iq4_nl": Unpack(_iq4_nl),
    "mxfp4": Unpack(_mxfp4),
    "q2_k": Unpack(_q2_k, group=16, has_least=True),
    "q3_k": Unpack(_q3_k, group=16),
    "q4_k": Unpack(_q4_k, has_least=True),
    "q5_k": Unpack(_q5_k, has_least=True),
    "q6_k": Unpack(_q6_k, group=16),
    "iq4_xs": Unpack(_iq4_xs),
}
