"""Portions: how threads share rows of weights that they read from memory, each claiming one after the other.

The first portions are large, since memory is read fastest in long runs; then they become ever smaller, so that all
threads end together. A portion is known by its number alone: who claims a number knows the rows.
"""

from __future__ import annotations

from graphrt.backends.cpu.helpers import helper

MOST, LEAST, GRAIN = 512, 32, 16  # rows; GRAIN divides all but the last


@helper
def portion_start(total, number, nth):
    """The first row of a portion of `total` rows that `nth` threads share; total or more past the last one."""
    largest = max(0, total - 2 * nth * MOST) // MOST
    start = min(number, largest) * MOST
    number -= min(number, largest)
    length = _length(total - start, nth)
    while number >= nth and start < total:
        start += nth * length
        number -= nth
        length = _length(total - start, nth)
    return start + number * length


@helper
def _length(rest, nth):
    """Rows of each of the next `nth` portions: together half of the rest."""
    return min(MOST, max(LEAST, rest // (2 * nth) // GRAIN * GRAIN))
