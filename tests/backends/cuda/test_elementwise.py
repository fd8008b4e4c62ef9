"""Elementwise kernels where cases are too small to go: rows by eights, ragged ends, views that are not aligned."""

from pathlib import Path

import numpy as np
import pytest

from graphrt import ops
from graphrt.backends.cuda.launch import Launch, Whole, bind
from graphrt.backends.cuda.shim_device import ShimDevice
from graphrt.backends.cuda.units import Unit
from tests.backends.cuda.on_shim import agrees, drawn, leaf, on_cuda

DIVISION = Unit("division", ["divide"], folder=Path(__file__).parent)


@pytest.mark.parametrize(("a", "b"), [("f32", "f32"), ("bf16", "f32"), ("f16", "bf16"), ("f32", "f16")])
def test_rows_by_eights_repeat_biases_and_scales(a: str, b: str):
    x = drawn(3, 5, 136, dtype=a)
    for shape in ((3, 5, 136), (136,), (5, 1), (3, 1, 136)):
        agrees(ops.mul(x, drawn(*shape, dtype=b, seed=1)))
    agrees(ops.sub(drawn(136, dtype=a), drawn(7, 136, dtype=b, seed=1)))


def test_ends_that_are_no_eight_and_views_that_are_not_aligned():
    x, y = drawn(2051), drawn(2051, seed=1)
    agrees(ops.add(x, y))
    agrees(ops.add(x[1:2049], y[2:2050]))
    agrees(ops.add(drawn(4, 41, dtype="bf16")[:, 1:33], drawn(4, 32)))


def test_clamp_leaves_nan_alone():
    (got,) = on_cuda(ops.clamp(leaf([np.nan, -np.inf, np.inf, 0.25, -3, 3, 0, 1, np.nan]), min=-1, max=1))
    np.testing.assert_array_equal(got, [np.nan, -1, 1, 0.25, -1, 1, 0, 1, np.nan])


@pytest.mark.parametrize(("dtype", "value"), [("f16", -np.inf), ("i16", -300), ("i64", 2**40), ("i8", -5)])
def test_fill_writes_every_byte_and_no_more(dtype: str, value: float):
    for length in (1, 31, 5000):
        (got,) = on_cuda(ops.fill(leaf(np.zeros(length, np.int64), dtype), value=value))
        np.testing.assert_array_equal(got, np.full(length, value, got.dtype))


def test_numbers_of_elements_beyond_32_bits_are_divided_right():
    device = ShimDevice(guarded=True, checked=True)
    out, _keeps = device.allocate(16)
    got, numbers = np.empty(2, np.int64), np.random.default_rng(0)
    pairs = [(2**32, 1), (2**32 - 1, 2**32 - 1), (5, 2**40), (2**62 - 1, 3), (2**62 - 1, 2**62 - 1), (7, 2)]
    pairs += [(int(a), int(b)) for a, b in numbers.integers(1, 2**62, (20, 2)) >> numbers.integers(0, 40, (20, 2))]
    for a, b in pairs:
        launch = Launch(DIVISION.kernel("divide"), [1], [1], [Whole(out), Whole(a), Whole(max(1, b))])
        device.prepare([bind(launch, {}, None)])[0]()
        device.download(out, got)
        assert got.tolist() == list(divmod(a, max(1, b)))
