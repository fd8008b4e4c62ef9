"""Interleaved rows: where their bytes stand, and what views of them may be."""

import numpy as np
import pytest

import graphrt
from graphrt import dtypes
from graphrt.errors import GraphError
from graphrt.testing import random_blocks

GENERATOR = np.random.default_rng(5)


@pytest.mark.parametrize("dtype", dtypes.QUANTIZED, ids=repr)
def test_values_stay_and_bytes_move(dtype):
    blocks = random_blocks(GENERATOR, (2, 48, 3 * dtype.block), dtype)
    side_by_side = dtypes.interleave(blocks)
    assert dtypes.of(side_by_side) is dtypes.interleaved(dtype)
    assert dtypes.shape_of(side_by_side) == (2, 48, 3 * dtype.block)
    assert side_by_side.nbytes == blocks.nbytes
    np.testing.assert_array_equal(dtypes.to_f32(side_by_side), dtypes.to_f32(blocks))
    first, last = dtype.words
    raw = side_by_side[1, 16:32].view(np.uint8).reshape(-1)
    for at in range(first, last, 4):
        for row in range(16):
            place = 16 * at + 4 * row + 16 * dtype.nbytes  # of the second block
            want = blocks[1, 16 + row, 1:2].view(np.uint8)[at : at + 4]
            np.testing.assert_array_equal(raw[place : place + 4], want)


def test_forms_are_found_by_name_and_array():
    form = dtypes.get("Q4_K_R16")
    assert (form.name, form.plain, form.rows) == ("q4_k_r16", dtypes.q4_k, 16)
    assert dtypes.of(np.zeros(3, form.numpy)) is form
    assert dtypes.from_gguf(form.gguf) is None
    assert form.name not in dtypes.writable()


def test_nothing_interleaved_is_nothing():
    assert dtypes.interleave(np.zeros((0, 2), dtypes.q8_0.numpy)).shape == (0, 2)


@pytest.mark.parametrize("array", [random_blocks(GENERATOR, (8, 64), dtypes.q8_0), np.zeros((16, 64), np.float32)])
def test_rows_that_have_no_such_form(array):
    with pytest.raises(GraphError, match=r"\[interleave\] .*has no interleaved form; give .* a multiple of 16 rows"):
        dtypes.interleave(array)


def test_views_keep_rows_side_by_side():
    w = graphrt.weight("w", dtypes.interleave(random_blocks(GENERATOR, (3, 48, 64), dtypes.q4_0)))
    assert w[1].shape == (48, 64)
    assert w[1:, 16:32].shape == (2, 16, 64)
    assert w.reshape(144, 64).shape == (144, 64)
    wrong = [lambda: w[:, 8:24], lambda: w[0, :10], lambda: w[..., :32], lambda: w.reshape(3, 96, 32), lambda: w[0, 3]]
    for cut in wrong:
        with pytest.raises(GraphError, match=r"q4_0_r16 has 16 rows side by side, which .* would cut: take whole rows"):
            cut()
