"""Every dtype's rows expanded to float32, against gguf's own dequantization (through dtypes.to_f32)."""

import ctypes

import numpy as np
import pytest

from graphrt import dtypes
from graphrt.backends.cpu import host
from graphrt.backends.cpu.args import word
from graphrt.backends.cpu.dequant import expander
from graphrt.backends.cpu.jit import native

VALUES = [dtype.name for dtype in (*dtypes.FLOATS, dtypes.i8, dtypes.i16, dtypes.i32, *dtypes.QUANTIZED)]


def expand_rows(name):
    expand = expander(name)

    def run(args, ith, nth):
        expand(word(args, 0), word(args, 1), word(args, 2), word(args, 3))

    return run


def expanded(name: str, row: np.ndarray, step: int, count: int) -> np.ndarray:
    target = np.full(count + 4, 7.0, np.float32)
    words = np.array([row.ctypes.data, step, count, target.ctypes.data], np.int64)
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(native(expand_rows, name).address)
    function(words.ctypes.data, 0, 1)
    np.testing.assert_array_equal(target[count:], 7.0)
    return target[:count]


def random_blocks(name: str, blocks: int) -> np.ndarray:
    """Blocks of random bytes whose scales are finite."""
    dtype = dtypes.get(name)
    generator = np.random.default_rng(3)
    if not dtype.is_quantized:
        return (generator.standard_normal(blocks) * 100).astype(dtype.numpy)
    raw = generator.integers(0, 256, (blocks, dtype.nbytes), np.uint8)
    raw[:, 1::2] &= 0xBF  # whichever bytes the f16 scales stand in: exponents below the greatest
    raw[:, 0::2] &= 0xBF
    return raw.view(dtype.numpy)[:, 0]


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("level", host.levels())
def test_dense_rows(name, level):
    row = random_blocks(name, 37)
    with host.use_level(level):
        got = expanded(name, row, row.itemsize, dtypes.shape_of(row)[0])
    np.testing.assert_allclose(got, dtypes.to_f32(row), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", VALUES)
def test_strided_rows(name):
    row = random_blocks(name, 21)
    got = expanded(name, row, 3 * row.itemsize, 7 * dtypes.get(name).block)
    np.testing.assert_allclose(got, dtypes.to_f32(row[::3]), rtol=2e-6, atol=1e-6)
