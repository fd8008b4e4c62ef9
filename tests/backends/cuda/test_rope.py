"""Rotation of models' heads, and its angles at far positions."""

import numpy as np
import pytest

import graphrt
from graphrt import ops
from tests.backends.cuda.on_shim import agrees, drawn, leaf, on_cuda

YARN = {"freq_scale": 0.025, "ext_factor": 1.0, "original_context": 4096, "magnitude": 1.1}


@pytest.mark.parametrize("tokens", [1, 70], ids=["one head a thread", "several heads a thread"])
@pytest.mark.parametrize("mode", ["normal", "neox"])
def test_heads_of_models(mode: str, tokens: int):
    positions = leaf(np.arange(tokens) * 37 + 1000, "i32")
    agrees(ops.rope(drawn(tokens, 5, 128), positions, mode=mode, base=5e5))
    agrees(ops.rope(drawn(tokens, 9, 192, dtype="bf16"), positions, mode=mode, first=128, **YARN))
    agrees(ops.rope(drawn(tokens, 2, 80)[:, :, 10:], positions, mode=mode, dims=32, first=4))


def test_angles_are_exact_at_far_positions():
    positions = np.array([0, 1, 131_071, 999_983, 2**31 - 1], np.int32)
    x = np.tile(np.float32([1.0, 0.0]), (len(positions), 1, 32))
    (got,) = on_cuda(ops.rope(graphrt.constant("x", x), graphrt.constant("positions", positions)))
    angle = positions[:, None] * 1e4 ** (-np.arange(32) / 32.0)
    np.testing.assert_allclose(got[:, 0, 0::2], np.cos(angle), atol=3e-7)
    np.testing.assert_allclose(got[:, 0, 1::2], np.sin(angle), atol=3e-7)
