"""Hugging Face folders to GGUF: layouts of weights and configuration, storage types, and broken folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from math import isclose, log
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from graphrt import dtypes
from graphrt.errors import FormatError
from graphrt.models.convert import convert_folder, llama
from graphrt.models.convert.checkpoint import DTYPES, Checkpoint
from graphrt.models.gguf_file import GGUFFile
from graphrt.models.hyperparameters import DeepSeek2Hyperparameters, LlamaHyperparameters

FIXTURES = Path(__file__).parents[1] / "fixtures"
Arrays = dict[str, np.ndarray]


class Folder:
    """A copy of a fixture that a test may change."""

    def __init__(self, name: str, path: Path) -> None:
        self.path = path / name
        shutil.copytree(FIXTURES / name, self.path)
        (self.path / "logits.npz").unlink()
        self.out = path / f"{name}.gguf"

    @property
    def config(self) -> dict[str, Any]:
        return json.loads((self.path / "config.json").read_text())

    def configure(self, **changes: Any) -> None:
        """Change config.json; None removes a field."""
        merged = self.config | changes
        kept = {key: value for key, value in merged.items() if not (key in changes and value is None)}
        (self.path / "config.json").write_text(json.dumps(kept))

    @property
    def weights(self) -> Arrays:
        return {name: array for path in self.path.glob("*.safetensors") for name, array in load_file(path).items()}

    def rewrite(self, weights: Arrays) -> None:
        """Replace all weights by a single file."""
        for path in [*self.path.glob("*.safetensors"), *self.path.glob("*.index.json")]:
            path.unlink()
        save_file(
            {name: np.ascontiguousarray(array) for name, array in weights.items()}, self.path / "model.safetensors"
        )

    def convert(self, **options: Any) -> GGUFFile:
        convert_folder(self.path, self.out, **{"dtype": "f32", **options})
        return GGUFFile.open(self.out)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], Folder]:
    return lambda name: Folder(name, tmp_path)


def contents(file: GGUFFile) -> dict[str, bytes]:
    return {name: tensor.array.tobytes() for name, tensor in file.tensors.items()}


def test_experts_come_singly_or_fused(folder: Callable[[str], Folder]) -> None:
    for name, block in (("mixtral", "block_sparse_moe"), ("deepseek2_lite", "mlp")):
        source = folder(name)
        before = contents(source.convert())
        weights = {
            key.replace(".block_sparse_moe.", ".mlp."): value
            for key, value in source.weights.items()
            if ".experts." not in key
        }
        gate, up, down = ("w1", "w3", "w2") if name == "mixtral" else ("gate_proj", "up_proj", "down_proj")
        old = source.weights
        for layer in range(source.config["num_hidden_layers"]):
            path = f"model.layers.{layer}.{block}.experts"
            if f"{path}.0.{gate}.weight" not in old:
                continue
            count = sum(key.startswith(path) for key in old) // 3
            fused = [np.concatenate([old[f"{path}.{e}.{part}.weight"] for part in (gate, up)]) for e in range(count)]
            weights[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = np.stack(fused)
            weights[f"model.layers.{layer}.mlp.experts.down_proj"] = np.stack(
                [old[f"{path}.{e}.{down}.weight"] for e in range(count)]
            )
        source.rewrite(weights)
        assert contents(source.convert()) == before


def test_both_styles_of_configuration_say_the_same(folder: Callable[[str], Folder]) -> None:
    for name in ("llama", "deepseek3", "mixtral"):
        source = folder(name)
        old = source.config
        fields = old.get("rope_parameters") or {"rope_theta": old["rope_theta"], **(old.get("rope_scaling") or {})}
        scaling = {key: value for key, value in fields.items() if key not in ("rope_theta", "rope_type", "type")}
        theta, kind = fields["rope_theta"], fields.get("rope_type") or fields.get("type") or "default"
        found = []
        for style in (
            {"rope_parameters": {"rope_theta": theta, "rope_type": kind, **scaling}},
            {"rope_theta": theta, "rope_scaling": {"type": kind, **scaling} if scaling else None},
            {"rope_theta": theta, "rope_scaling": {"rope_type": kind, **scaling} if scaling else None},
        ):
            source.configure(**{"rope_parameters": None, "rope_theta": None, "rope_scaling": None} | style)
            metadata = source.convert().metadata
            found.append({key: np.asarray(value).tolist() for key, value in metadata.items()})
        assert found[0] == found[1] == found[2]
        assert found[0][f"{GGUFFile.open(source.out).architecture}.rope.freq_base"] == theta


def test_a_sharded_folder_equals_a_single_file(folder: Callable[[str], Folder]) -> None:
    source = folder("mixtral")
    assert len(list(source.path.glob("*.safetensors"))) > 1
    before = contents(source.convert())
    source.rewrite(source.weights)
    assert contents(source.convert()) == before


def test_pieces_of_large_tensors_join_without_a_seam(
    folder: Callable[[str], Folder], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder("deepseek2")
    whole = contents(source.convert())
    monkeypatch.setattr("graphrt.models.convert.checkpoint.PIECE_ELEMENTS", 1000)
    assert contents(source.convert()) == whole


def test_tied_embeddings_are_written_once(folder: Callable[[str], Folder]) -> None:
    source = folder("llama")
    source.configure(tie_word_embeddings=True)
    assert "output.weight" not in source.convert().tensors
    source.configure(tie_word_embeddings=False)
    source.rewrite(source.weights | {"lm_head.weight": source.weights["model.embed_tokens.weight"] + 1})
    file = source.convert()
    np.testing.assert_array_equal(file.tensors["output.weight"].array, file.tensors["token_embd.weight"].array + 1)


def test_head_dim_need_not_be_width_over_heads(folder: Callable[[str], Folder]) -> None:
    source = folder("mixtral")
    config = source.config
    width, heads, kv_heads = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    size = 2 * width // heads
    weights, draw = source.weights, np.random.default_rng(3)
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}.self_attn"
        for name, shape in (
            ("q", (heads * size, width)),
            ("k", (kv_heads * size, width)),
            ("v", (kv_heads * size, width)),
        ):
            weights[f"{block}.{name}_proj.weight"] = draw.standard_normal(shape, np.float32)
        weights[f"{block}.o_proj.weight"] = draw.standard_normal((width, heads * size), np.float32)
    source.rewrite(weights)
    source.configure(head_dim=size)
    file = source.convert()
    assert LlamaHyperparameters.from_file(file).head_size == size
    assert file.metadata["llama.rope.dimension_count"] == size
    assert file.tensors["blk.0.attn_q.weight"].shape == (heads * size, width)
    q = weights["model.layers.0.self_attn.q_proj.weight"].reshape(heads, size, width)
    found = file.tensors["blk.0.attn_q.weight"].array.reshape(heads, size, width)
    np.testing.assert_array_equal(found[:, 0::2], q[:, : size // 2])
    np.testing.assert_array_equal(found[:, 1::2], q[:, size // 2 :])


def test_the_dialects_hold_the_same_keys_and_values(folder: Callable[[str], Folder]) -> None:
    source = folder("deepseek2")
    files = {dialect: source.convert(dialect=dialect).tensors for dialect in ("mla", "both", "legacy")}
    hyperparameters = {
        dialect: DeepSeek2Hyperparameters.from_file(source.convert(dialect=dialect)) for dialect in files
    }
    assert hyperparameters["mla"] == hyperparameters["both"] == hyperparameters["legacy"]
    hp = hyperparameters["mla"]
    joint = files["legacy"]["blk.0.attn_kv_b.weight"].array.reshape(hp.heads, hp.nope_size + hp.value_size, hp.kv_rank)
    keys, values = (files["mla"][f"blk.0.attn_{name}_b.weight"].array for name in "kv")
    assert keys.shape == (hp.heads, hp.kv_rank, hp.nope_size)
    np.testing.assert_array_equal(keys, joint[:, : hp.nope_size].swapaxes(1, 2))
    np.testing.assert_array_equal(values, joint[:, hp.nope_size :])
    for name in ("attn_k_b", "attn_v_b"):
        flat, deep = files["both"][f"blk.0.{name}.weight"], files["mla"][f"blk.0.{name}.weight"]
        assert len(flat.shape) == 2
        assert flat.array.tobytes() == deep.array.tobytes()
    assert "blk.0.attn_kv_b.weight" in files["both"]
    assert "blk.0.attn_kv_b.weight" not in files["mla"]


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0"])
def test_weights_are_stored_in_the_type_asked_for(folder: Callable[[str], Folder], dtype: str) -> None:
    file = folder("deepseek3").convert(dtype=dtype)
    exact = ("_norm.weight", "ffn_gate_inp.weight", "exp_probs_b.bias")
    for name, tensor in file.tensors.items():
        assert tensor.dtype is dtypes.get("f32" if name.endswith(exact) else dtype), name


def test_rows_that_no_block_divides_fall_back_to_f16(folder: Callable[[str], Folder]) -> None:
    source = folder("mixtral")
    weights = source.weights
    for name, array in weights.items():
        if ".experts." in name:
            weights[name] = array[:, :48] if name.endswith(".w2.weight") else array[:48]
    source.rewrite(weights)
    source.configure(intermediate_size=48)
    report = convert_folder(source.path, source.out, "q8_0")
    assert GGUFFile.open(source.out).tensors["blk.0.ffn_down_exps.weight"].dtype is dtypes.f16
    assert GGUFFile.open(source.out).tensors["blk.0.ffn_up_exps.weight"].dtype is dtypes.q8_0
    assert "blk.0.ffn_down_exps.weight: rows of 48 are not a multiple of 32; stored as f16, not q8_0" in report.notes


def test_half_precision_sources_are_exact(folder: Callable[[str], Folder]) -> None:
    source = folder("llama")
    for scalar in (np.float16, ml_dtypes.bfloat16):
        halves = {name: array.astype(scalar) for name, array in source.weights.items()}
        write_safetensors(source.path / "model.safetensors", halves)
        name = "blk.0.ffn_down.weight"
        expected = halves["model.layers.0.mlp.down_proj.weight"].astype(np.float32)
        np.testing.assert_array_equal(source.convert().tensors[name].array, expected)


def write_safetensors(path: Path, arrays: Arrays) -> None:
    """A safetensors file by hand: the package's NumPy face cannot write every dtype."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    table, at = {}, 0
    for name, array in arrays.items():
        offsets = [at, at + array.nbytes]
        table[name] = {"dtype": names[array.dtype], "shape": array.shape, "data_offsets": offsets}
        at += array.nbytes
    header = json.dumps(table).encode()
    path.write_bytes(
        len(header).to_bytes(8, "little") + header + b"".join(array.tobytes() for array in arrays.values())
    )


def test_float8_weights_are_multiplied_by_their_tiles_factors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(5)
    weight = draw.standard_normal((300, 200)).astype(ml_dtypes.float8_e4m3fn)
    factors = draw.uniform(0.5, 2, (3, 2)).astype(np.float32)
    (tmp_path / "config.json").write_text("{}")
    write_safetensors(tmp_path / "model.safetensors", {"w": weight, "w_scale_inv": factors})
    expected = weight.astype(np.float32)
    for row, column in np.ndindex(3, 2):
        tile = np.s_[128 * row : 128 * (row + 1), 128 * column : 128 * (column + 1)]
        expected[tile] *= factors[row, column]
    checkpoint = Checkpoint(tmp_path)
    np.testing.assert_array_equal(checkpoint.read("w"), expected)
    monkeypatch.setattr("graphrt.models.convert.checkpoint.PIECE_ELEMENTS", 200 * 50)
    np.testing.assert_array_equal(np.concatenate(list(checkpoint.pieces("w"))), expected)


def test_layers_that_predict_further_tokens_are_left_out(folder: Callable[[str], Folder]) -> None:
    source = folder("deepseek3")
    before = contents(source.convert())
    last = source.config["num_hidden_layers"]
    extra = {f"model.layers.{last}.eh_proj.weight": np.ones((4, 4), np.float32)}
    source.rewrite(source.weights | extra)
    report = convert_folder(source.path, source.out, "f32")
    assert contents(GGUFFile.open(source.out)) == before
    assert report.notes == [f"left out: layer {last}, which predicts further tokens"]


def test_biases_of_attention_are_converted(folder: Callable[[str], Folder]) -> None:
    source = folder("llama")
    rows = source.weights["model.layers.0.self_attn.q_proj.weight"].shape[0]
    bias = np.arange(rows, dtype=np.float32)
    source.rewrite(source.weights | {"model.layers.0.self_attn.q_proj.bias": bias})
    found = source.convert().tensors["blk.0.attn_q.bias"].array
    np.testing.assert_array_equal(found, llama.interleave(source.config["num_attention_heads"])(bias))


@pytest.mark.parametrize(
    ("changes", "rotation", "scores"),
    [
        ({"mscale": 0.707, "mscale_all_dim": 0.707}, 1.0, 0.707),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0, 1.0),
        ({"mscale": 1.0, "mscale_all_dim": 0.5}, None, 0.5),
        ({"mscale": 0.5, "mscale_all_dim": 1.0}, None, 1.0),
        ({"mscale": 0.0, "mscale_all_dim": 0.0}, None, 0.0),
        ({}, None, 0.0),
    ],
)
def test_yarn_magnitudes_are_those_of_transformers(
    folder: Callable[[str], Folder], changes: dict[str, float], rotation: float | None, scores: float
) -> None:
    factor = 40.0
    source = folder("deepseek2_lite")
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": factor, "original_max_position_embeddings": 64, **changes}
    source.configure(rope_parameters=rope)

    def growth(multiplier: float) -> float:
        return 1 + 0.1 * multiplier * log(factor)

    if rotation is None:
        both = changes.get("mscale") and changes.get("mscale_all_dim")
        rotation = growth(changes["mscale"]) / growth(changes["mscale_all_dim"]) if both else growth(1)
    hp = DeepSeek2Hyperparameters.from_file(source.convert())
    assert isclose(hp.rope.magnitude, rotation, rel_tol=1e-6)
    assert isclose(hp.attention_scale, growth(scores) ** 2 / (hp.nope_size + hp.rope_size) ** 0.5, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("name", "groups"),
    [("deepseek2", (4, 2, "max")), ("deepseek2_lite", (1, 1, "top2_sum")), ("deepseek3", (4, 2, "top2_sum"))],
)
def test_the_file_says_how_groups_of_experts_are_ranked(
    folder: Callable[[str], Folder], name: str, groups: tuple[int, int, str]
) -> None:
    source = folder(name)
    if groups[0] > 1:
        assert (source.config["n_group"], source.config["topk_group"]) == groups[:2]
    hp = DeepSeek2Hyperparameters.from_file(source.convert())
    assert (hp.expert_groups, hp.expert_groups_used, hp.expert_group_score) == groups


def test_a_failure_leaves_nothing_behind(folder: Callable[[str], Folder]) -> None:
    source = folder("mixtral")
    source.out.write_bytes(b"an older file")
    shard = sorted(source.path.glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(FormatError, match=rf"\[{shard.name}\] tensor .* takes \d+ bytes, the file gives it"):
        source.convert()
    assert source.out.read_bytes() == b"an older file"
    assert {path.name for path in source.out.parent.iterdir()} == {"mixtral", "mixtral.gguf"}


def drop_weight(name: str) -> Callable[[Folder], None]:
    return lambda source: source.rewrite({key: value for key, value in source.weights.items() if key != name})


def remove(name: str) -> Callable[[Folder], None]:
    return lambda source: (source.path / name).unlink()


def write(name: str, text: str) -> Callable[[Folder], object]:
    return lambda source: (source.path / name).write_text(text)


# What is wrong with the folder, and what the message must say.
BROKEN: dict[str, tuple[Callable[[Folder], object], str]] = {
    "no config": (remove("config.json"), r"config\.json is missing"),
    "config no JSON": (write("config.json", "{"), r"config\.json\] is not valid JSON"),
    "config a list": (write("config.json", "[]"), "holds no JSON object"),
    "kind": (lambda f: f.configure(model_type="gpt_neo"), 'model_type "gpt_neo" is unknown; known: llama'),
    "no width": (lambda f: f.configure(hidden_size=None), '"hidden_size" must be a whole number, it is None'),
    "width a text": (lambda f: f.configure(hidden_size="64"), "must be a whole number, it is '64'"),
    "no eps": (lambda f: f.configure(rms_norm_eps=None), '"rms_norm_eps" must be a number'),
    "rope": (lambda f: f.configure(rope_parameters={"rope_type": "longrope"}), 'rope scaling "longrope" is unknown'),
    "rope without factor": (lambda f: f.configure(rope_parameters={"rope_type": "yarn"}), 'lacks the number "factor"'),
    "rope a list": (lambda f: f.configure(rope_parameters=[1]), r"the rope settings are \[1\]"),
    "missing tensor": (drop_weight("model.norm.weight"), 'no tensor "model.norm.weight"'),
    "wrong shape": (
        lambda f: f.rewrite(f.weights | {"model.norm.weight": np.ones(7, np.float32)}),
        r"model\.norm\.weight\] has shape \(7,\), config\.json asks for",
    ),
    "unknown tensor": (
        lambda f: f.rewrite(f.weights | {"model.layers.0.mlp.up_proj.bias": np.ones(7, np.float32)}),
        r"1 tensors that GGUF has no place for: model\.layers\.0\.mlp\.up_proj\.bias",
    ),
    "no weights": (remove("model.safetensors"), r"no \.safetensors files"),
    "weights cut in the header": (lambda f: (f.path / "model.safetensors").write_bytes(b"\xff" * 12), "a header of"),
    "header no JSON": (
        lambda f: (f.path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{]"),
        "the header is not JSON",
    ),
    "header a list": (
        lambda f: (f.path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]"),
        "the header is no JSON object",
    ),
    "missing shard": (
        write("model.safetensors.index.json", '{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'),
        "model-00001-of-00002.safetensors is named in .* but missing",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_with_a_folder_is_named(folder: Callable[[str], Folder], case: str) -> None:
    damage, message = BROKEN[case]
    source = folder("llama")
    damage(source)
    with pytest.raises(FormatError, match=rf"^\[.*{message}"):
        source.convert()
    assert not source.out.exists()


@pytest.mark.parametrize(
    ("option", "message"), [({"dtype": "q4_k"}, 'cannot write "q4_k"'), ({"dialect": "x"}, 'dialect "x"')]
)
def test_unknown_options_are_refused(folder: Callable[[str], Folder], option: dict[str, str], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        folder("llama").convert(**option)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="is not a folder"):
        convert_folder(tmp_path / "absent", tmp_path / "x.gguf")
