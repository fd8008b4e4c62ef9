"""The shim catches mistakes with products by warpgroups: each planted one is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphrt import dtypes
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
BULK = {
    "TOO_FEW_EXPECTED": r"block \(0, 0, 0\) ends before a bulk copy of 8192 bytes that it began",
    "TOO_MANY_EXPECTED": r"block \(0, 0, 0\) wait for each other: thread 0 at barrier_wait",
    "UNFENCED_BARRIER": r"copy_bulk with a barrier that nobody fenced \(fence_operands\) since barrier_init",
    "UNALIGNED": "copy_bulk of 8192 bytes from .*: 16 must divide all of these",
    "PAST_THE_END": "copy_bulk of 8192 bytes to .*, past the end of shared memory",
    "BEGUN_TOO_EARLY": "operands of wgmma changed while it ran",
    "ABANDONED": r"block \(0, 0, 0\) ends before a bulk copy of 8192 bytes that it began",
}
TRANSPOSED = ("OTHER_LEADING", "PLAIN_B", "PART_OF_A_PATTERN", "UNFENCED_POWERS")
UNIT = Unit(
    "planted_wgmma",
    [
        *(f"multiply<{each}>" for each in ("NONE", *WRONG, *NAN, *ERRORS)),
        *(f"multiply_transposed<{each}>" for each in ("RIGHT", *TRANSPOSED)),
        *(f"multiply_bulk<{each}>" for each in ("CORRECT", "UNAWAITED", *BULK)),
    ],
    architecture="90a",
    folder=Path(__file__).parent,
)


def run(kernel: str, order: int = 0, columns: int = 128, threads: int = 256, source: int = 0) -> np.ndarray:
    device = ShimDevice(order=order)
    y, _keeps = device.allocate(4 * 64 * columns)
    launch = Launch(UNIT.kernel(kernel), [1], [threads], [Whole(y), Whole(source)], 26 << 10)
    replay, _ = device.prepare([bind(launch, {}, None)])
    replay()
    result = np.empty((64, columns), np.float32)
    device.download(y, result)
    return result


def run_transposed(mistake: str, order: int = 0) -> np.ndarray:
    return run(f"multiply_transposed<{mistake}>", order, columns=256, threads=128)


def run_bulk(mistake: str, order: int = 0) -> np.ndarray:
    """With rows of b in the device's memory, of which piece p of row r lies in place p ^ r % 8."""
    row, k = np.ogrid[:128, :64]
    pieces = dtypes.from_f32(numbers(64 + row, k).astype(np.float32), dtypes.bf16).reshape(128, 8, 8)
    device, source = ShimDevice(), np.empty_like(pieces)
    source[row, np.arange(8) ^ row % 8] = pieces
    at, _keeps = device.allocate(source.nbytes)
    device.upload(at, source)
    return run(f"multiply_bulk<{mistake}>", order, threads=128, source=at)


def numbers(row: np.ndarray, k: np.ndarray) -> np.ndarray:
    return (row * 7 + k * 3) % 11 - 5


def expected(columns: int = 128, depth: int = 64) -> np.ndarray:
    row, k = np.ogrid[: 64 + columns, :depth]
    both = numbers(row, k)
    return (both[:64] @ both[64:].T).astype(np.float32)


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


@pytest.mark.parametrize("order", [0, 1, 7, 8])
def test_bulk_copies_bring_operands(order):
    np.testing.assert_array_equal(run_bulk("CORRECT", order), expected())


def test_what_bulk_copies_are_yet_to_bring_is_nan():
    assert np.isnan(run_bulk("UNAWAITED")).all()


@pytest.mark.parametrize("mistake", BULK)
def test_mistakes_with_bulk_copies(mistake):
    with pytest.raises(KernelError, match=BULK[mistake]):
        run_bulk(mistake)
