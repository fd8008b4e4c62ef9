"""Rows by number over models' widths, and with ids that do not exist."""

import numpy as np
import pytest

import graphrt
from graphrt import ops
from graphrt.dtypes import QUANTIZED, DType
from graphrt.testing import random_blocks
from tests.backends.cuda.on_shim import agrees, drawn, leaf, on_cuda

IDS = np.array([1, -1, 2, 3, 2**30], np.int32)


@pytest.mark.parametrize("dtype", QUANTIZED, ids=lambda dtype: dtype.name)
def test_rows_of_an_embedding(dtype: DType):
    table = random_blocks(np.random.default_rng(0), (9, 768), dtype)
    agrees(ops.get_rows(graphrt.weight("embedding", table), leaf([8, 0, 3, 3], "i32")))


def test_rows_of_floats_and_of_single_numbers():
    ids = leaf(np.random.default_rng(0).integers(0, 64, (5, 6)), "i32")
    agrees(ops.get_rows(drawn(5, 64, 136, dtype="f16"), ids))
    agrees(ops.get_rows(drawn(5, 64, 1), ids))


@pytest.mark.parametrize("cache", ["f16", "bf16", "q8_0", "q4_0"])
def test_rows_into_a_cache(cache: str):
    for width, first in ((512, None), (64, 448)):
        target = graphrt.state("cache", (40, 512), cache)
        written = ops.set_rows(target, drawn(5, width), leaf([7, 39, 0, 11, 12], "i64"), first=first)
        agrees(written)


@pytest.mark.parametrize(("rows", "width", "first"), [(0, 32, None), (3, 0, 8)])
def test_nothing_to_write_leaves_a_table_as_it_is(rows: int, width: int, first: int | None):
    target = graphrt.state("cache", data=np.ones((4, 32), np.float16))
    written = ops.set_rows(target, drawn(rows, width), leaf(np.arange(rows), "i64"), first=first)
    agrees(written)


def test_rows_that_do_not_exist_read_as_nan():
    x = np.arange(24, dtype=np.float32).reshape(3, 8)
    got = on_cuda(ops.get_rows(leaf(x), leaf(IDS, "i32")))[0]
    np.testing.assert_array_equal(got[[0, 2]], x[[1, 2]])
    assert np.isnan(got[[1, 3, 4]]).all()
    blocks = on_cuda(ops.get_rows(leaf(np.ones((3, 32)), "q8_0"), leaf(IDS, "i32")))[0]
    np.testing.assert_array_equal(np.isnan(blocks).all(axis=-1), [False, True, False, True, True])
    whole = on_cuda(ops.get_rows(leaf(np.ones((3, 4), np.int64), "i16"), leaf(IDS, "i32")))[0]
    np.testing.assert_array_equal(whole[:, 3], [1, 0, 1, 0, 0])


@pytest.mark.parametrize("dtype", ["f32", "q8_0"])
def test_rows_that_do_not_exist_are_not_written(dtype: str):
    cache = graphrt.state("cache", (5, 32), dtype)
    written = ops.set_rows(cache[1:4], leaf(np.full((5, 32), 127)), leaf(IDS, "i32"))
    (got,) = on_cuda(written)
    assert [bool(row.tobytes().strip(b"\0")) for row in got] == [False, True, True]


def test_biases_that_do_not_exist_add_nan():
    got = on_cuda(ops.add_id(leaf(np.zeros((1, 5, 16))), leaf(np.ones((3, 16))), leaf(IDS[None], "i32")))[0]
    np.testing.assert_array_equal(np.isnan(got[0, :, 0]), [False, True, False, True, True])
    np.testing.assert_array_equal(got[0, [0, 2]], np.ones((2, 16)))
