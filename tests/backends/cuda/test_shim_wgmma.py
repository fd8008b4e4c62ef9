"""The shim catches mistakes with products by warpgroups: each planted one is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphrt.backends.cuda.launch import Launch, Whole, bind
from graphrt.backends.cuda.shim_device import ShimDevice
from graphrt.backends.cuda.units import Unit
from graphrt.errors import KernelError

WRONG = ("UNSWIZZLED",)
NAN = ("UNFENCED_OPERANDS", "EARLY_SUMS", "UNCOMMITTED")
ERRORS = {
    "OTHER_PHASE": "operands of wgmma changed while it ran",  # the phase before the first counts as over
    "OVERWRITTEN_OPERANDS": "operands of wgmma changed while it ran",
    "MISPLACED": "patterns of 128-byte swizzle begin at multiples of 1024",
    "OTHER_STRIDE": "patterns of 128-byte swizzle begin at multiples of 1024",
    "OTHER_SWIZZLE": r"the shim knows 128-byte swizzle \(1\), not 2",
    "OTHER_OPERANDS": "wgmma with other operands than other threads of its warpgroup",
    "UNFENCED_SUMS": "wgmma on registers that the thread had, without wgmma_fence",
    "PART_OF_A_WARPGROUP": r"block \(0, 0, 0\) wait for each other: thread 0 at wgmma",
    "MISSING_ARRIVAL": r"block \(0, 0, 0\) wait for each other: thread 0 at barrier_wait",
}
TRANSPOSED = ("OTHER_LEADING", "PLAIN_B", "PART_OF_A_PATTERN", "UNFENCED_POWERS")
UNIT = Unit(
    "planted_wgmma",
    [
        *(f"multiply<{each}>" for each in ("NONE", *WRONG, *NAN, *ERRORS)),
        *(f"multiply_transposed<{each}>" for each in ("RIGHT", *TRANSPOSED)),
    ],
    architecture="90a",
    folder=Path(__file__).parent,
)


def run(kernel: str, order: int = 0, columns: int = 128, threads: int = 256) -> np.ndarray:
    device = ShimDevice(order=order)
    y, _keeps = device.allocate(4 * 64 * columns)
    launch = Launch(UNIT.kernel(kernel), [1], [threads], [Whole(y), Whole(0)], 26 << 10)
    replay, _ = device.prepare([bind(launch, {}, None)])
    replay()
    result = np.empty((64, columns), np.float32)
    device.download(y, result)
    return result


def run_transposed(mistake: str, order: int = 0) -> np.ndarray:
    return run(f"multiply_transposed<{mistake}>", order, columns=256, threads=128)


def expected(columns: int = 128, depth: int = 64) -> np.ndarray:
    row, k = np.ogrid[: 64 + columns, :depth]
    numbers = (row * 7 + k * 3) % 11 - 5
    return (numbers[:64] @ numbers[64:].T).astype(np.float32)


@pytest.mark.parametrize("order", [0, 1, 7])
def test_a_right_product_is_not_complained_of(order):
    np.testing.assert_array_equal(run("multiply<NONE>", order), expected())


@pytest.mark.parametrize("mistake", WRONG)
def test_operands_that_lie_otherwise_give_other_sums(mistake):
    found = run(f"multiply<{mistake}>")
    assert np.isfinite(found).all()
    assert (found != expected()).any()


@pytest.mark.parametrize("mistake", NAN)
def test_what_is_not_there_yet_is_nan(mistake):
    assert np.isnan(run(f"multiply<{mistake}>")).all()


@pytest.mark.parametrize("mistake", ERRORS)
def test_what_a_gpu_would_punish_is_an_error(mistake):
    with pytest.raises(KernelError, match=ERRORS[mistake]):
        run(f"multiply<{mistake}>")


@pytest.mark.parametrize("order", [0, 1, 7])
def test_columns_may_lie_side_by_side(order):
    np.testing.assert_array_equal(run_transposed("RIGHT", order), expected(256, 16))


def test_mistakes_with_columns_side_by_side():
    with pytest.raises(KernelError, match="patterns of 128-byte swizzle begin at multiples of 1024"):
        run_transposed("PART_OF_A_PATTERN")
    assert np.isnan(run_transposed("UNFENCED_POWERS")).all()
    with pytest.raises(KernelError, match="what it tells of lies outside shared memory"):
        run_transposed("PLAIN_B")
    assert (run_transposed("OTHER_LEADING") != expected(256, 16)).any()
