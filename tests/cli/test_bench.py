"""`graphrt bench`: llama-bench's tests, columns and field names."""

from __future__ import annotations

import csv
import io
import json
import statistics
from pathlib import Path

import pytest

from graphrt.cli.bench_report import BenchTest
from tests.cli.conftest import Command

QUICK = ["-p", "4,8", "-n", 2, "-pg", "4,2", "-d", "0,3", "-r", 2]
NAMES = ["pp4", "pp8", "tg2", "pp4+tg2"]


def test_markdown_has_llama_benchs_columns(graphrt: Command, mixtral: Path) -> None:
    header, rule, *rows = graphrt("bench", mixtral, *QUICK).out.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (header, *rows)]
    assert cells[0] == ["model", "size", "params", "backend", "threads", "test", "t/s"]
    assert [row[5] for row in cells[1:]] == [*NAMES, *(f"{name} @ d3" for name in NAMES)]
    assert all(float(row[6].split("±")[0]) > 0 for row in cells[1:])
    assert len({len(line) for line in (header, rule, *rows)}) == 1, "the columns stand in line"


def test_json_has_llama_benchs_fields(graphrt: Command, mixtral: Path) -> None:
    results = json.loads(graphrt("bench", mixtral, *QUICK, "-t", 1, "-o", "json").out)
    assert [(r["n_prompt"], r["n_gen"], r["n_depth"]) for r in results[:5]] == [
        (4, 0, 0), (8, 0, 0), (0, 2, 0), (4, 2, 0), (4, 0, 3)
    ]  # fmt: skip
    for result in results:
        assert result["model_filename"] == str(mixtral)
        assert result["n_threads"] == 1
        tokens = result["n_prompt"] + result["n_gen"]
        assert result["samples_ts"] == pytest.approx([1e9 * tokens / ns for ns in result["samples_ns"]])
        assert result["avg_ts"] == pytest.approx(statistics.fmean(result["samples_ts"]))
        assert result["stddev_ts"] == pytest.approx(statistics.stdev(result["samples_ts"]))


def test_csv_has_a_line_for_each_test(graphrt: Command, mixtral: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(graphrt("bench", mixtral, *QUICK, "-o", "csv").out)))
    assert len(rows) == 8
    assert {"model_size", "model_n_params", "avg_ns", "avg_ts", "stddev_ts"} <= set(rows[0])


@pytest.mark.parametrize(
    ("test", "name"),
    [(BenchTest(512, 0), "pp512"), (BenchTest(0, 128), "tg128"), (BenchTest(4, 2, 9), "pp4+tg2 @ d9")],
)
def test_names(test: BenchTest, name: str) -> None:
    assert test.name == name


@pytest.mark.parametrize("arguments", [["-p", "many"], ["-pg", "4"], ["-p", 0, "-n", 0]])
def test_a_wrong_count_is_a_usage_error(graphrt: Command, mixtral: Path, arguments: list[object]) -> None:
    assert graphrt("bench", mixtral, *arguments).code == 2


def test_profiles_follow_the_table_and_go_into_a_trace(graphrt: Command, mixtral: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    result = graphrt("bench", mixtral, "-p", 4, "-n", 2, "-r", 1, "--profile", "--trace", trace)
    for words in ("pp4: prompt", "tg2: decode", "one run: ", "GFLOP/s", "experts", "blk.*.ffn_down_exps.weight"):
        assert words in result.out
    events = json.loads(trace.read_text())
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {0: "pp4: prompt", 1: "tg2: decode"}
    assert {event["name"] for event in events if event["pid"] == 1} >= {"result_output", "kqv-1"}


def test_json_stays_json_beside_a_profile(graphrt: Command, mixtral: Path) -> None:
    result = graphrt("bench", mixtral, "-p", 4, "-n", 0, "-r", 1, "--profile", "-o", "json")
    assert len(json.loads(result.out)) == 1
    assert "pp4: prompt" in result.err
