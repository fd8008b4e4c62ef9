"""The benchmark of whole models on the CPU: what it counts, what it judges, and the page that it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from docs.benchmarks.cpu_limits import least_seconds
from docs.benchmarks.cpu_models import SUBJECTS, TYPES, VOCABULARY
from docs.benchmarks.cpu_run import Session, Trial, measure
from docs.benchmarks.cpu_targets import Results, fallen, point, targets
from docs.benchmarks.model_work import cache_bytes, operations, weight_bytes
from graphrt.models.synth import describe, synthesise

# MB that decoding a token reads, of files that llama-quantize made.
ACTIVE = {
    "V2-Lite": {"bf16": 678, "q8_0": 361, "q4_0": 194, "q4_k_m": 220},
    "Mixtral": {"bf16": 1611, "q8_0": 856, "q4_0": 466, "q4_k_m": 501},
}


class SteadyLimits:
    """A machine that always reads and multiplies equally fast."""

    def measure(self, kinds: Any) -> dict[str, float]:
        return dict.fromkeys(kinds, 1e9)

    def bandwidth(self, runs: int) -> float:
        return 1e9


def result(speed: float, share: float) -> dict[str, Any]:
    return {"tokens_per_second": [speed] * 3, "share": [share] * 3, "limits": {}}


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
@pytest.mark.parametrize("file_type", TYPES)
def test_bytes_of_active_weights(subject: Any, file_type: str) -> None:
    file = describe(subject.preset, subject.layers, file_type, vocabulary=VOCABULARY)
    assert round(weight_bytes(file) / 1e6) == ACTIVE[subject.name][file_type]


def test_bytes_of_the_cache_for_a_token() -> None:
    lite, mixtral = (describe(each.preset, each.layers, vocabulary=VOCABULARY) for each in SUBJECTS)
    assert cache_bytes(lite) == 2 * (512 + 64) * 4
    assert cache_bytes(mixtral) == 2 * 8 * (128 + 128) * 2


def test_operations_of_a_prompt_leave_out_what_only_the_last_token_needs() -> None:
    file = describe("tiny-llama", layers=2, dtype="bf16")
    width, hidden, vocabulary = 256, 512, 1024
    attention = width * width * 2 + width * width // 2 * 2  # two kv heads of four
    feed_forward, tokens = 3 * width * hidden, 100
    products = tokens * (2 * attention + feed_forward) + feed_forward + vocabulary * width
    assert operations(file, tokens)["bf16"] == 2 * products
    cached = width * width // 2 * 2
    products = 612 * (attention + cached + feed_forward) + 100 * (attention - cached) + feed_forward
    assert operations(file, 612)["bf16"] == 2 * (products + vocabulary * width)  # 512, and then 100


def test_operations_of_experts_are_those_of_the_used_ones() -> None:
    dense = operations(describe("tiny-llama", layers=2, dtype="q8_0"), 8)["int8"]
    experts = operations(describe("tiny-mixtral", layers=2, dtype="q8_0"), 8)["int8"]
    assert experts - dense == 2 * 3 * 256 * 512 * (8 + 1)  # a second expert, in the last layer for one token


def test_a_prompt_reads_the_experts_that_its_tokens_choose() -> None:
    one, sixteen, all_of_them = (
        weight_bytes(describe("tiny-mixtral", layers=2, dtype="bf16"), tokens) for tokens in (1, 16, 512)
    )
    expert = 2 * 3 * 256 * 512
    assert sixteen - one == pytest.approx(expert * (8 * (1 - 0.75**16) - 2))  # in the first layer only
    assert all_of_them - one == pytest.approx(6 * expert)


def test_the_least_time_is_that_of_the_slower_limit() -> None:
    limits = {"bandwidth": 10.0, "int8": 100.0, "f32": 50.0}
    assert least_seconds(limits, {"bandwidth": 20.0, "int8": 100.0}) == 2.0
    assert least_seconds(limits, {"bandwidth": 20.0, "int8": 200.0, "f32": 50.0}) == 3.0


def test_names_of_tests() -> None:
    for name in ("pp512", "tg64", "tg64 @ d4096"):
        assert Trial.of(name).name == name
    assert Trial.of("tg64 @ d4096").length == 4160
    with pytest.raises(ValueError, match="'pp' is no test"):
        Trial.of("pp")


def test_a_session_runs_prompts_and_decoding_at_any_depth(tmp_path: Path) -> None:
    path = synthesise("tiny-mixtral", tmp_path / "x.gguf", layers=1)
    session = Session(path, 64, threads=1)
    for name in ("pp8", "tg2 @ d16", "tg2 @ d16", "tg3", "pp4"):
        test = Trial.of(name)
        assert session.run(test) > 0
        assert session.context.cells.used == test.length
    found = measure(session, Trial.of("tg2"), SteadyLimits(), rounds=2)
    work = session.work(Trial.of("tg2"))["bandwidth"]
    assert len(found["share"]) == len(found["tokens_per_second"]) == 2
    assert found["share"][0] == pytest.approx(work / 1e9 * found["tokens_per_second"][0] / 2, rel=0.01, abs=1e-4)
    assert len(list(session.parts(Trial.of("tg17")))) == 3


def test_targets_tell_what_is_reached() -> None:
    results: Results = {
        "V2-Lite q8_0 tg64": result(100, 0.91),
        "V2-Lite q8_0 tg64 @ d16384": result(49, 0.5),
        "V2-Lite q4_0 tg64": result(100, 0.79),
    }
    peers = {"V2-Lite q8_0 pp512": {"ratio": 4.5}}
    verdicts = {(t.subject, t.file_type, t.what): t.verdict for t in targets(results, peers)}
    assert verdicts["V2-Lite", "q8_0", "decode, share of the bandwidth"] == "reached"
    assert verdicts["V2-Lite", "q4_0", "decode, share of the bandwidth"] == "not reached"
    assert verdicts["V2-Lite", "q8_0", "pp512, ratio to llama.cpp"] == "reached"
    assert verdicts["V2-Lite", "q8_0", "decode after 16384 tokens over after none"] == "not reached"
    assert verdicts["Mixtral", "bf16", "decode, ratio to llama.cpp"] == "not measured"


def test_a_share_that_fell_is_named() -> None:
    recorded = {"a": result(10, 0.8), "b": result(10, 0.8), "c": result(10, 0.8)}
    now = {"a": result(1, 0.7), "b": result(99, 0.6)}
    assert fallen(now, recorded, tolerance=0.15) == ["b: 0.600 of the limit, 0.800 recorded (-25%)"]
    assert fallen(now, recorded, tolerance=0.05)[0].startswith("a: ")


def test_the_page_shows_results_targets_and_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib: pip install -e .[bench]")
    from docs.benchmarks.cpu_report import write_page

    tests = ("pp128", "pp512", "pp8192", "tg64", "tg64 @ d16384")
    models = {
        point(subject.name, kind, test): result(50, 0.5) for subject in SUBJECTS for kind in TYPES for test in tests
    }
    limits = {"bandwidth": 50.0, "int8": 2000.0, "bf16": 1000.0, "f32": 500.0, "load": 4.0}
    machine = {"threads": 2, "processor": "a processor", "commit": "abc1234"}
    (tmp_path / "cpu.json").write_text(json.dumps({"machine": machine, "limits": [limits], "models": models}))
    (tmp_path / "cpu_before.json").write_text(
        json.dumps({"machine": machine | {"commit": "26b47d2"}, "models": {"V2-Lite q8_0 tg64": result(40, 0.4)}})
    )
    write_page(tmp_path)
    page = (tmp_path / "cpu.md").read_text()
    assert "| V2-Lite | q8_0 | 361 | 50.0 (50%) | 40.0 (40%) | 50.0 (50%) |" in page
    assert "2 threads of a processor, commit abc1234" in page
    assert "`before` is commit 26b47d2" in page
    assert "load average was between 4.0 and 4.0: others used" in page
    assert "| Mixtral | q8_0 | decode after 16384 tokens over after none | 0.50 |  | 1.00 | reached |" in page
    assert {path.name for path in tmp_path.glob("*.png")} == {"cpu_shares.png", "cpu_context.png"}
