"""The loops that measure what a processor can do: they multiply as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from graphrt.backends.cpu import host, peaks

ROUNDS = 5


@pytest.mark.parametrize("level", host.levels())
@pytest.mark.parametrize("kind", peaks.PRODUCTS)
def test_every_sum_takes_every_product(kind: str, level: str) -> None:
    with host.use_level(level) as used:
        if kind not in peaks.kinds():
            pytest.skip(f"{level} has no instruction for {kind}")
        peak = peaks.Peak(kind, 1, ROUNDS)
        factors = peak.memory[0, 0].copy()
        peak.run()
    if kind == "int8":
        left = factors.view(np.int8 if used.has("dotprod") else np.uint8).astype(np.int32)
        products = left * factors.view(np.int8)
        expected = factors + ROUNDS * products.reshape(-1, 4).sum(axis=1)
        assert (peak.memory == expected).all()
    else:
        one = factors.view(np.float32)
        each = np.full_like(one, 2) if kind == "bf16" else one * one
        assert peak.memory.view(np.float32) == pytest.approx(np.broadcast_to(one + ROUNDS * each, peak.memory.shape))
    assert peak.operations == 2 * peaks.PRODUCTS[kind] * peak.memory.size * ROUNDS


def test_rates_are_of_the_operations_done() -> None:
    """Dot products of bytes do more than sums of products of floats, on any machine that has them."""
    rates = {kind: peaks.peak(kind, 1) for kind in peaks.PRODUCTS}
    assert rates["f32"] > 1e8
    assert rates["int8"] is None or rates["int8"] > rates["f32"]
