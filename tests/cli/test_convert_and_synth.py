"""`graphrt convert` and `graphrt synth`: files that the other commands then read."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import FIXTURES, Command


def tensor_types(graphrt: Command, path: Path) -> dict[str, str]:
    return {tensor["name"]: tensor["type"] for tensor in json.loads(graphrt("inspect", path, "--json").out)["tensors"]}


def test_convert_writes_the_type_asked_for(graphrt: Command, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    result = graphrt("convert", FIXTURES / "mixtral", path, "--type", "bf16")
    assert (result.code, result.out) == (0, "")
    assert "llama, " in result.err
    types = tensor_types(graphrt, path)
    assert types["blk.0.attn_q.weight"] == "bf16"
    assert types["blk.0.attn_norm.weight"] == "f32"


def test_convert_writes_deepseek_in_any_dialect(graphrt: Command, tmp_path: Path) -> None:
    names = {}
    for dialect in ("mla", "legacy", "both"):
        path = tmp_path / f"{dialect}.gguf"
        assert graphrt("convert", FIXTURES / "deepseek2_lite", path, "--type", "f32", "--dialect", dialect).code == 0
        names[dialect] = set(tensor_types(graphrt, path))
    assert "blk.0.attn_k_b.weight" in names["mla"]
    assert "blk.0.attn_kv_b.weight" in names["legacy"]
    assert names["both"] == names["mla"] | names["legacy"]


def test_convert_says_what_the_folder_lacks(graphrt: Command, tmp_path: Path) -> None:
    result = graphrt("convert", tmp_path, tmp_path / "out.gguf")
    assert result.code == 1
    assert "config.json" in result.err
    assert not (tmp_path / "out.gguf").exists()


def test_synth_follows_layers_types_and_seed(graphrt: Command, tmp_path: Path) -> None:
    options = ["--layers", 2, "--type", "q4_0", "--tensor-type", "ffn_down_exps=q8_0"]
    for name, seed in {"a": 1, "b": 1, "c": 2}.items():
        assert graphrt("synth", "tiny-mixtral", tmp_path / f"{name}.gguf", *options, "--seed", seed).code == 0
    types = tensor_types(graphrt, tmp_path / "a.gguf")
    assert types["blk.1.ffn_down_exps.weight"] == "q8_0"
    assert types["blk.1.ffn_up_exps.weight"] == "q4_0"
    assert not any(name.startswith("blk.2.") for name in types)
    first, same, other = ((tmp_path / f"{name}.gguf").read_bytes() for name in "abc")
    assert first == same != other
    assert graphrt("generate", tmp_path / "a.gguf", "-p", "hello", "-n", 2).code == 0


def test_synth_mixes_types_as_llama_quantize_does(graphrt: Command, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    options = ("--layers", 2, "--vocabulary", 400, "--type", "Q4_K_M")
    assert graphrt("synth", "tiny-mixtral", path, *options).code == 0
    types = tensor_types(graphrt, path)
    assert types["output.weight"] == types["blk.1.ffn_down_exps.weight"] == "q6_k"
    assert types["token_embd.weight"] == types["blk.0.ffn_down_exps.weight"] == "q4_k"
    assert types["blk.0.attn_v.weight"] == "q8_0"


def test_synth_lists_the_presets(graphrt: Command, tmp_path: Path) -> None:
    result = graphrt("synth", "gpt-9", tmp_path / "x.gguf")
    assert result.code == 1
    assert "deepseek-v2-lite" in result.err
    assert "mixtral-8x7b" in result.err


def test_synth_wants_rules_of_two_parts(graphrt: Command, tmp_path: Path) -> None:
    assert graphrt("synth", "tiny-mixtral", tmp_path / "x.gguf", "--tensor-type", "exps").code == 2
