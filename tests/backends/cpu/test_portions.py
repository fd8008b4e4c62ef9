"""Portions: every row once, in long runs first, whoever claims what."""

from __future__ import annotations

import numpy as np
import pytest

from graphrt.backends.cpu import jit
from graphrt.backends.cpu.args import word
from graphrt.backends.cpu.memory import store_integer
from graphrt.backends.cpu.portions import GRAIN, LEAST, MOST, portion_start
from graphrt.backends.cpu.threads import pool

NUMBERS = 2000


def starts_of() -> jit.Kernel:
    """Native: the starts of the first portions, to the memory at word 0; word 1 is the rows, word 2 the threads."""

    def run(args, ith, nth):
        for number in range(NUMBERS):
            store_integer(word(args, 0) + 8 * number, "i64", portion_start(word(args, 1), number, word(args, 2)))

    return run


def lengths(rows: int, threads: int) -> list[int]:
    """The rows of each portion, as whoever claims them sees them."""
    starts = np.zeros(NUMBERS, np.int64)
    words = np.array([starts.ctypes.data, rows, threads], np.int64)

    calls = np.array([jit.native(starts_of).address, words.ctypes.data], np.int64)
    pool(1).run(calls.ctypes.data, 1)
    ends = np.minimum(np.append(starts[1:], rows), rows)
    assert starts[-1] >= rows, "a number after the last portion begins past the rows"
    return [int(end - start) for start, end in zip(starts, ends, strict=True) if start < rows]


@pytest.mark.parametrize("threads", [1, 2, 3, 16, 64])
@pytest.mark.parametrize("rows", [0, 1, 31, 32, 33, 1408, 6 * 1408, 4096, 102400])
def test_every_row_is_in_one_portion(rows: int, threads: int):
    found = lengths(rows, threads)
    assert sum(found) == rows
    assert all(length > 0 for length in found)
    assert all(length % GRAIN == 0 and LEAST <= length <= MOST for length in found[:-1])


@pytest.mark.parametrize("threads", [1, 2, 16])
def test_portions_become_shorter_and_the_last_ones_are_short(threads: int):
    found = lengths(6 * 1408, threads)
    assert found == sorted(found, reverse=True)
    assert found[0] >= min(MOST, 6 * 1408 // (2 * threads) - GRAIN)
    assert found[-1] <= LEAST
