"""Products with many columns in int8: they must be exact products of w with x rounded to int8, block by block."""

import numpy as np
import pytest

import graphrt
from graphrt import dtypes, ops
from graphrt.backends.cpu import host, int8_product
from graphrt.testing import normalised_error, random_blocks

QUANTIZED = [dtype.name for dtype in dtypes.QUANTIZED]
GENERATOR = np.random.default_rng(7)
# What float32 sums may add to the error of an exact product; that of rounding x to int8 is a million times as large.
EXACT = 1e-11


def rounded_to_int8(x: np.ndarray) -> np.ndarray:
    """x [..., K] with a scale for every 32, in float64."""
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    largest = np.abs(blocks).max(-1, keepdims=True)
    codes = np.rint(blocks.astype(np.float64) * (np.float32(127) / largest))
    return (codes * (largest * np.float32(1 / 127))).reshape(x.shape)


def random_pair(name: str, w_shape: tuple[int, ...], x_shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    return random_blocks(GENERATOR, w_shape, dtypes.get(name)), GENERATOR.standard_normal(x_shape, np.float32)


def run(node: graphrt.Tensor) -> np.ndarray:
    return graphrt.Scheduler(["cpu"], threads=2).plan(graphrt.Graph([node])).run()[0]


def error(w: np.ndarray, x: np.ndarray, *, rounded: bool = True) -> float:
    got = run(ops.mul_mat(graphrt.weight("w", w), graphrt.constant("x", x)))
    exact = (rounded_to_int8(x) if rounded else x) @ dtypes.to_f32(w).astype(np.float64).swapaxes(-1, -2)
    return normalised_error(got, exact.astype(np.float32))


@pytest.mark.parametrize("name", QUANTIZED)
def test_every_dtype(name):
    """Rows past the last 32 and past the last 16, columns past the last six, and blocks past the last whole words."""
    width = 160 if dtypes.get(name).block == 32 else 768
    assert error(*random_pair(name, (45, width), (29, width))) < EXACT


@pytest.mark.parametrize("name", ["q8_0", "q2_k", "iq4_xs"])
@pytest.mark.parametrize("level", host.levels()[1:])
def test_lower_levels(name, level):
    with host.use_level(level):
        assert error(*random_pair(name, (45, 768), (17, 768))) < EXACT


@pytest.mark.parametrize(("height", "width", "columns"), [(1, 64, 8), (16, 128, 9), (70, 1408, 13), (33, 5376, 20)])
def test_sizes(height, width, columns):
    assert int8_product.DEPTH + int8_product.MORE < 5376, "no size takes several panels for the depth"
    assert error(*random_pair("q8_0", (height, width), (columns, width))) < EXACT


def test_the_error_of_rounding_x_is_that_of_seven_bits():
    """Rounding errors are uniform: scale² / 12, where the largest of 32 normal numbers, about 2.2, is 127 scales."""
    found = error(*random_pair("q8_0", (64, 2048), (48, 2048)), rounded=False)
    assert 1.5e-5 < found < 6e-5


def test_rows_of_less_than_a_unit_are_multiplied_in_float32():
    assert error(*random_pair("q8_0", (40, 32), (20, 32)), rounded=False) < EXACT
    assert error(*random_pair("q6_k", (40, 256), (20, 256)), rounded=False) < EXACT


def test_batches_broadcast_both_ways():
    w, x = random_pair("q4_0", (3, 1, 8, 128), (2, 20, 128))
    assert error(w, x) < EXACT
    assert error(w[:1], x) < EXACT
    assert error(w, x[:1]) < EXACT


@pytest.mark.parametrize("name", ["q8_0", "q4_k"])
@pytest.mark.parametrize("rows", [1, 2])
def test_experts_with_uneven_numbers_of_columns(name, rows):
    """Experts 0 to 3 with 0, 1, 2 and 13 columns, the fifth with all the others."""
    experts = np.repeat([1, 2, 3, 4], [1, 2, 13, 74]).astype(np.int32)
    ids = GENERATOR.permutation(experts).reshape(45, 2)
    w, x = random_pair(name, (5, 40, 512), (45, rows, 512))
    got = run(ops.mul_mat_id(graphrt.weight("w", w), graphrt.constant("x", x), graphrt.constant("ids", ids)))
    matrices, rounded = dtypes.to_f32(w).astype(np.float64), rounded_to_int8(x)
    exact = np.einsum("tuk,tumk->tum", np.broadcast_to(rounded, (45, 2, 512)), matrices[ids])
    assert normalised_error(got, exact.astype(np.float32)) < EXACT


@pytest.mark.parametrize("name", ["q8_0", "q4_k"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_reach_the_result(name, bad):
    w, x = random_pair(name, (5, 512), (20, 512))
    x[3, 300] = bad
    got = run(ops.mul_mat(graphrt.weight("w", w), graphrt.constant("x", x)))
    assert not np.isfinite(got[3]).any()
    assert np.isfinite(np.delete(got, 3, axis=0)).all()


def test_a_block_of_zeros_and_tiny_numbers_give_zero():
    w, x = random_pair("q8_0", (5, 128), (20, 128))
    x[:, :32], x[2], x[3] = 0, 0, 1e-38
    got = run(ops.mul_mat(graphrt.weight("w", w), graphrt.constant("x", x)))
    np.testing.assert_array_equal(got[2:4], 0)
    assert np.isfinite(got).all()
