import numpy as np
import pytest

from graphrt import dtypes
from graphrt.errors import GraphError
from graphrt.testing import random_blocks


def test_sizes_agree_with_the_gguf_package():
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    for dtype in dtypes.ALL.values():
        assert GGML_QUANT_SIZES[GGMLQuantizationType(dtype.gguf)] == (dtype.block, dtype.nbytes), dtype
        assert dtype.numpy.itemsize == dtype.nbytes


@pytest.mark.parametrize("name", dtypes.ALL)
def test_dtype_is_found_by_name_array_and_gguf_number(name):
    dtype = dtypes.get(name)
    assert dtypes.get(name.upper()) is dtype
    assert dtypes.of(np.zeros(3, dtype.numpy)) is dtype
    assert dtypes.from_gguf(dtype.gguf) is dtype


@pytest.mark.parametrize("name", dtypes.writable())
def test_writable_dtypes_round_trip(name):
    values = np.random.default_rng(0).integers(-8, 8, (3, 2, 64)).astype(np.float32)
    dtype = dtypes.get(name)
    packed = dtypes.from_f32(values, dtype)
    assert dtypes.shape_of(packed) == values.shape
    error = np.abs(dtypes.to_f32(packed) - values).max()
    assert error <= (1.0 if dtype.is_quantized else 0.0)


@pytest.mark.parametrize("dtype", dtypes.QUANTIZED, ids=repr)
def test_quantized_arrays_slice_and_transpose_as_blocks(dtype):
    packed = random_blocks(np.random.default_rng(1), (4, 3, 2 * dtype.block), dtype)
    whole = dtypes.to_f32(packed)
    assert np.array_equal(dtypes.to_f32(packed[1:3].transpose(1, 0, 2)), whole[1:3].transpose(1, 0, 2))
    assert np.array_equal(dtypes.to_f32(packed[..., 1:]), whole[..., dtype.block :])


def test_unknown_dtype_lists_the_known_ones():
    with pytest.raises(GraphError, match=r'unknown dtype "q9_9"; known: f32, f16'):
        dtypes.get("q9_9")


def test_unwritable_dtype_says_what_can_be_written():
    with pytest.raises(GraphError, match=r"q4_k can be read but not written"):
        dtypes.from_f32(np.zeros((1, 256), np.float32), dtypes.q4_k)


def test_rows_must_be_whole_blocks():
    with pytest.raises(GraphError, match=r"a row of 40 elements is not a whole number of blocks of 32"):
        dtypes.from_f32(np.zeros((1, 40), np.float32), dtypes.q8_0)


def test_foreign_numpy_dtype_is_refused():
    with pytest.raises(GraphError, match=r"float64 has no graphrt dtype"):
        dtypes.of(np.zeros(2))
