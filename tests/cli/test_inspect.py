"""`graphrt inspect`."""

from __future__ import annotations

import json
import re
from pathlib import Path

from graphrt.models.gguf_write import save
from tests.cli.conftest import Command


def test_tables_show_metadata_tensors_and_types(graphrt: Command, mixtral: Path) -> None:
    out = graphrt("inspect", mixtral).out
    assert "general.architecture" in out
    assert "blk.0.ffn_down_exps.weight" in out
    assert "token_embd.weight" in out


def test_values_are_shown_as_they_are(graphrt: Command, tmp_path: Path) -> None:
    path = tmp_path / "chat.gguf"
    save(path, "llama", {"tokenizer.chat_template": "[INST] é {{ x }}\n[/INST]", "general.name": "[red]x"}, [])
    out = graphrt("inspect", path).out
    assert r"[INST] é {{ x }}\n[/INST]" in out
    assert "[red]x" in out


def test_match_narrows(graphrt: Command, mixtral: Path) -> None:
    out = graphrt("inspect", mixtral, "--match", r"blk\.1\.attn_q").out
    assert "blk.1.attn_q.weight" in out
    assert "blk.0" not in out
    assert "general.architecture" not in out


def test_json_holds_everything(graphrt: Command, mixtral: Path) -> None:
    found = json.loads(graphrt("inspect", mixtral, "--json").out)
    assert found["metadata"]["general.architecture"] == "llama"
    assert len(found["metadata"]["tokenizer.ggml.tokens"]) == found["tensors"][0]["shape"][0]
    assert sum(tensor["nbytes"] for tensor in found["tensors"]) < found["size"]


def test_graph_as_text_gives_backends_and_reasons(graphrt: Command, mixtral: Path) -> None:
    out = graphrt("inspect", mixtral, "--graph").out
    assert out.startswith("graph: ")
    assert "mul_mat_id(blk.0.ffn_gate_exps.weight" in out


def test_graph_as_dot(graphrt: Command, deepseek2: Path) -> None:
    out = graphrt("inspect", deepseek2, "--dot", "-n", "3").out
    assert out.startswith("digraph graphrt {")
    assert "subgraph cluster_1" in out
    assert "split 0: cpu" in out


def test_a_bad_pattern_is_a_usage_error(graphrt: Command, mixtral: Path) -> None:
    result = graphrt("inspect", mixtral, "--match", "(")
    assert result.code == 2
    assert "not a regular expression" in result.err


def test_the_schedule_as_json(graphrt: Command, mixtral: Path) -> None:
    told = json.loads(graphrt("inspect", mixtral, "--graph", "--json", "-ot", "attn_q=reference").out)
    assert {part["backend"] for part in told["splits"]} == {"cpu", "reference"}


def test_the_schedule_as_a_page(graphrt: Command, mixtral: Path, tmp_path: Path) -> None:
    page = tmp_path / "graph.html"
    assert str(page.name) in graphrt("inspect", mixtral, "--html", page).err
    assert "blk.0.ffn_gate_exps.weight" in page.read_text(encoding="utf-8")
    assert graphrt("inspect", mixtral, "--html", tmp_path / "no" / "graph.html").code == 2


def test_the_schedule_of_a_device_is_shown_without_loading_it(graphrt: Command, mixtral: Path) -> None:
    options = ("--device", "sim", "-ngl", 99, "--cpu-moe", "-ot", "no_such=cpu")
    decoding = graphrt("inspect", mixtral, "--graph", "-v", *options)
    assert "phase decode" in decoding.out
    assert re.search(r"split #\d: cpu, 11 nodes, 2 inputs copied", decoding.out)
    assert "not sim: not offloaded: batch 1 x" in decoding.out
    assert 'the override "no_such=cpu" matched nothing' in " ".join(decoding.err.split())
    assert "phase prompt" in graphrt("inspect", mixtral, "--graph", "-n", 128, *options).out
