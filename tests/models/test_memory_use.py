"""Plans of memory: constant over contexts, within what is promised, and what real runs take."""

from __future__ import annotations

import os
import sys

import pytest

from docs.benchmarks.compute_buffer import CONTEXTS, planned, run_apart

CONSTANT = ("auto", "flashmla2", "absorbed", "naive")
MIB = 1 << 20


@pytest.mark.parametrize("preset", ["deepseek-v2-lite", "deepseek-v3"])
@pytest.mark.parametrize("mla", CONSTANT)
def test_the_compute_buffer_does_not_grow_with_the_context(preset: str, mla: str) -> None:
    first, last = (planned(preset, n_ctx, mla, layers=5) for n_ctx in (CONTEXTS[0], CONTEXTS[-1]))
    assert first.compute == last.compute
    assert first.decode.compute == last.decode.compute
    assert last.kv_cache["cpu"] == 64 * first.kv_cache["cpu"]


def test_of_v2_lite_it_is_under_64_mib() -> None:
    assert planned("deepseek-v2-lite", CONTEXTS[-1]).compute["cpu"] < 64 * MIB


def test_a_materialised_mask_and_scores_grow() -> None:
    first, last = (planned("deepseek-v2-lite", n_ctx, "pp-opt", layers=2).compute["cpu"] for n_ctx in (2048, 8192))
    assert last - first > 6144 * 512 * 16 * 4  # the scores of 512 tokens and 16 heads alone


def test_layers_add_to_the_cache_and_the_weights_only() -> None:
    few, many = (planned("deepseek-v2-lite", 2048, layers=layers) for layers in (3, 9))
    assert few.compute == many.compute
    assert many.kv_cache["cpu"] == 3 * few.kv_cache["cpu"]
    assert many.weights["cpu"] > few.weights["cpu"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads anonymous memory from /proc")
def test_a_real_run_takes_what_was_planned() -> None:
    # A short context, or with GRAPHRT_LONG_TESTS=1 the long one of docs/benchmarks/compute_buffer.md (minutes).
    n_ctx = 32768 if os.environ.get("GRAPHRT_LONG_TESTS") else 2048
    found = run_apart("deepseek-v2-lite", n_ctx)
    assert found.ratio == pytest.approx(1, abs=0.05)
