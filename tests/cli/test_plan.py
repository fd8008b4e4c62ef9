"""`graphrt plan`: what a model takes, of files and of presets that are not there."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

import graphrt as package
from tests.cli.conftest import Command

LITE = ("--preset", "deepseek-v2-lite", "--type", "q4_0", "--ubatch", 512)


def planned(graphrt: Command, *arguments: object) -> Any:
    result = graphrt("plan", *arguments, "--json")
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_a_model_that_is_not_there_is_planned_in_seconds(graphrt: Command) -> None:
    start = time.process_time()
    told = planned(graphrt, "--preset", "deepseek-v3", "--type", "q4_k", "--ctx", 131072)
    assert time.process_time() - start < 5
    assert told["kv_cache_bytes"] == {"cpu": 131072 * 70272}  # bytes a token: 61 layers of 512 + 64 in f16
    assert 350 * 2**30 < told["weight_bytes"]["cpu"] < 400 * 2**30
    assert told["compute_buffer_bytes"]["cpu"] == max(
        graph["compute_buffer_bytes"]["cpu"] for graph in told["graphs"].values()
    )


def test_what_fills_the_buffer_at_its_peak_adds_up(graphrt: Command) -> None:
    for graph in planned(graphrt, *LITE)["graphs"].values():
        held = [tensor["bytes"] for tensor in graph["peak"]["cpu"]]
        assert held == sorted(held, reverse=True)
        assert 0.9 * graph["compute_buffer_bytes"]["cpu"] < sum(held) <= graph["compute_buffer_bytes"]["cpu"]


def test_a_file_is_planned_as_it_then_runs(graphrt: Command, deepseek2: Path) -> None:
    told = planned(graphrt, deepseek2, "-c", 256, "-ub", 16, "--cache-type", "f32")
    context = package.load(deepseek2, n_ctx=256, n_ubatch=16, cache_type="f32", threads=1).new_context()
    assert told["kv_cache_bytes"] == {"cpu": context.cache.nbytes}
    plans = {phase: context.plan(tokens, 1, 256, phase) for tokens, phase in ((16, "prompt"), (1, "decode"))}
    for phase, plan in plans.items():
        assert told["graphs"][phase]["compute_buffer_bytes"] == {"cpu": plan.compute_bytes}
    weights = sum(tensor.nbytes for tensor in package.load(deepseek2).file.tensors.values())
    assert told["weight_bytes"] == {"cpu": weights}


def test_a_device_holds_what_is_placed_on_it(graphrt: Command) -> None:
    told = planned(graphrt, "--preset", "mixtral-8x7b", "--device", "sim", "-ngl", 99, "--cpu-moe")
    weights, caches = told["weight_bytes"], told["kv_cache_bytes"]
    assert weights["cpu"] > 20 * weights["sim"] > 0  # the experts are most of it
    assert (caches["cpu"], caches["sim"] > 0) == (0, True)


def test_several_contexts_make_a_table(graphrt: Command) -> None:
    out = graphrt("plan", *LITE, "-c", "2048,131072").out
    assert "deepseek-v2-lite: deepseek2, 27 layers" in out
    assert "131,072" in out
    assert "biggest at the peak, context 131,072" in out
    assert [use["n_ctx"] for use in planned(graphrt, *LITE, "-c", "2048,4096")] == [2048, 4096]


@pytest.mark.parametrize("arguments", [[], ["model.gguf", "--preset", "tiny-llama"], [*LITE, "-c", "long"]])
def test_a_wrong_call_is_a_usage_error(graphrt: Command, arguments: list[object]) -> None:
    assert graphrt("plan", *arguments).code == 2


def test_an_unknown_preset_gets_the_list(graphrt: Command) -> None:
    assert "deepseek-v2-lite" in graphrt("plan", "--preset", "gpt-9").err
