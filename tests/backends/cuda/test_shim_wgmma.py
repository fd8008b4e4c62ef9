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
UNIT = Unit(
    "planted_wgmma",
    [f"multiply<{each}>" for each in ("NONE", *WRONG, *NAN, *ERRORS)],
    architecture="90a",
    folder=Path(__file__).parent,
)


def run(mistake: str, order: int = 0) -> np.ndarray:
    device = ShimDevice(order=order)
    y, _keeps = device.allocate(4 * 64 * 128)
    launch = Launch(UNIT.kernel(f"multiply<{mistake}>"), [1], [256], [Whole(y), Whole(0)], 26 << 10)
    replay, _ = device.prepare([bind(launch, {}, None)])
    replay()
    result = np.empty((64, 128), np.float32)
    device.download(y, result)
    return result


def expected() -> np.ndarray:
    row, k = np.ogrid[: 64 + 128, :64]
    numbers = (row * 7 + k * 3) % 11 - 5
    return (numbers[:64] @ numbers[64:].T).astype(np.float32)


@pytest.mark.parametrize("order", [0, 1, 7])
def test_a_right_product_is_not_complained_of(order):
    np.testing.assert_array_equal(run("NONE", order), expected())


@pytest.mark.parametrize("mistake", WRONG)
def test_operands_that_lie_otherwise_give_other_sums(mistake):
    found = run(mistake)
    assert np.isfinite(found).all()
    assert (found != expected()).any()


@pytest.mark.parametrize("mistake", NAN)
def test_what_is_not_there_yet_is_nan(mistake):
    assert np.isnan(run(mistake)).all()


@pytest.mark.parametrize("mistake", ERRORS)
def test_what_a_gpu_would_punish_is_an_error(mistake):
    with pytest.raises(KernelError, match=ERRORS[mistake]):
        run(mistake)
