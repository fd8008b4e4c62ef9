"""Copies of layouts that models have, and codes of quantized blocks where rounding is close."""

import numpy as np
import pytest

import graphrt
from graphrt import dtypes, ops
from tests.backends.cuda.on_shim import agrees, drawn, leaf, on_cuda, on_reference


def test_large_and_permuted_copies():
    x = drawn(7, 5, 104, dtype="bf16")
    for view in (x, x.permute(1, 0, 2), x.permute(2, 0, 1), x[:, :, 3:50], x[:, 1:4, 8:]):
        agrees(ops.cont(view))
        agrees(ops.cast(view, dtype="f32"))
    agrees(ops.dup(drawn(12345, dtype="f16")))
    for dtype in ("f32", "f16"):  # by tiles, ragged
        x = drawn(3, 45, 2, 70, dtype=dtype)
        agrees(ops.cont(x.permute(0, 3, 2, 1)))
        agrees(ops.cont(x.permute(3, 1, 0, 2)))
    agrees(ops.repeat(drawn(4, 1, 64), shape=(4, 6, 64)))
    agrees(ops.concat(drawn(3, 4, 128), drawn(3, 4, 64, seed=1), axis=-1))
    agrees(ops.concat(drawn(4, 3, 128).permute(1, 0, 2), drawn(3, 4, 5, seed=1), axis=-1))


HARD = np.zeros((8, 32), np.float32)
HARD[1] = np.linspace(-1, 1, 32)
HARD[2] = np.arange(32) - 16.0  # halves of steps
HARD[3, ::2], HARD[3, 1::2] = 3.0, -3.0  # the extreme on both sides
HARD[4] = 1e-30
HARD[5, 9] = np.nan
HARD[6] = 2.0 ** (np.arange(32) % 12 - 6)
HARD[7] = np.nextafter(np.float32(4), np.float32(0))


@pytest.mark.parametrize("dtype", ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "mxfp4"])
def test_codes_are_those_of_the_reference(dtype: str):
    random = np.random.default_rng(0).standard_normal((20, 96)).astype(np.float32)
    for values in (HARD, random, np.round(random * 4) / 4):
        (got,), (expected,) = (run(ops.cast(leaf(values), dtype=dtype)) for run in (on_cuda, on_reference))
        np.testing.assert_array_equal(dtypes.to_f32(got), dtypes.to_f32(expected))


def test_a_copy_into_a_view_of_another_shape():
    for dtype in ("f16", "i32", "q8_0"):
        target = graphrt.state("target", (6, 3, 64), dtype)
        agrees(ops.cpy(target[:, 1], drawn(3, 128)))
    target = graphrt.state("target", (6, 64), "f32")
    agrees(ops.cpy(target, drawn(3, 128, dtype="q5_1")))
    agrees(ops.cpy(target[:, ::2], drawn(3, 64, dtype="q4_0")))
    for dtype in ("f32", "f16"):  # at an address that no vector has
        agrees(ops.cpy(graphrt.state("target", (300,), dtype)[1:289], drawn(9, 32, dtype="q8_0")))
