"""Random models: every preset, every type, and the same file for the same seed."""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np
import pytest

import graphrt
from graphrt import dtypes
from graphrt.errors import FormatError, GraphError
from graphrt.models.gguf_file import GGUFFile
from graphrt.models.hyperparameters import DeepSeek2Hyperparameters
from graphrt.models.presets import PRESETS
from graphrt.models.random_weights import RandomWeights, random_blocks
from graphrt.models.storage_types import storage_type
from graphrt.models.synth import describe, dummy_vocabulary, made_up_words, synthesise, synthesise_in_memory
from graphrt.models.tokenizer import Tokenizer

TINY = [name for name in PRESETS if name.startswith("tiny")]


@pytest.mark.parametrize("dialect", ["mla", "legacy", "both"])
@pytest.mark.parametrize("preset", TINY)
def test_models_can_be_built_from_what_is_written(tmp_path: Path, preset: str, dialect: str) -> None:
    file = GGUFFile.open(synthesise(preset, tmp_path / "x.gguf", dialect=dialect))
    assert len(graphrt.load(file).decoder.layers) == PRESETS[preset]["num_hidden_layers"]
    tokenizer = Tokenizer.from_metadata(file.metadata, file.path.name)
    assert tokenizer.decode(tokenizer.encode("To be, or not to be")) == "To be, or not to be"


@pytest.mark.parametrize("dialect", ["mla", "legacy"])
@pytest.mark.parametrize("preset", TINY)
def test_a_description_is_of_the_file_that_would_be_written(tmp_path: Path, preset: str, dialect: str) -> None:
    rules = [("ffn_down_exps", "q8_0")]
    written = GGUFFile.open(synthesise(preset, tmp_path / "x.gguf", 2, "q4_k", rules, dialect=dialect))
    told = describe(preset, 2, "q4_k", rules, dialect)
    facts = [[(t.name, t.dtype, t.shape, t.nbytes) for t in file.tensors.values()] for file in (told, written)]
    assert facts[0] == facts[1]
    assert {key: written.metadata[key] for key in told.metadata} == pytest.approx(told.metadata)
    tensor = next(iter(told.tensors.values()))
    assert not tensor.leaf(tensor.shape).has_data
    with pytest.raises(FormatError, match="is described only"):
        assert tensor.array is None


@pytest.mark.parametrize("preset", TINY)
def test_a_model_in_memory_has_the_files_values(tmp_path: Path, preset: str) -> None:
    written = GGUFFile.open(synthesise(preset, tmp_path / "x.gguf", 2, "q4_k", vocabulary=400, seed=3))
    held = synthesise_in_memory(preset, 2, "q4_k", vocabulary=400, random=RandomWeights(3))
    for name, tensor in written.tensors.items():
        assert held.tensors[name].array.tobytes() == tensor.array.tobytes(), name
    tokens = [1, 5, 300]
    np.testing.assert_array_equal(graphrt.load(held).logits(tokens), graphrt.load(written).logits(tokens))


@pytest.mark.parametrize("dtype", [*dtypes.FLOATS, *dtypes.QUANTIZED], ids=str)
def test_random_blocks_have_the_deviation_asked_for(dtype: dtypes.DType) -> None:
    values = dtypes.to_f32(random_blocks(dtype, 60_000 // dtype.block, 0.02, np.random.default_rng(2)))
    tolerance = 0.42 if dtype is dtypes.mxfp4 else 0.05  # mxfp4's factors are powers of two
    assert np.isfinite(values).all()
    assert abs(values.std() / 0.02 - 1) < tolerance
    assert abs(values.mean()) < 0.001


def test_pieces_fill_the_shape_and_keep_the_size_of_vectors() -> None:
    shape = (3, 700, 2048)
    matrix = np.concatenate(list(RandomWeights(1).matrix(shape, dtypes.q8_0)))
    assert matrix.size == prod(shape) // 32
    product = dtypes.to_f32(matrix.reshape(-1, 64))[:600] @ np.random.default_rng(1).standard_normal(2048)
    assert abs(product.std() - 1) < 0.1


def test_equal_seeds_give_equal_files(tmp_path: Path) -> None:
    files = [
        synthesise("tiny-mixtral", tmp_path / f"{n}.gguf", seed=seed).read_bytes() for n, seed in enumerate((4, 4, 5))
    ]
    assert files[0] == files[1] != files[2]


def test_tensors_take_the_types_asked_for(tmp_path: Path) -> None:
    rules = [
        ("ffn_down_exps", "q6_k"),
        ("ffn_.*_exps", "q4_0"),
        ("attn_q", "bf16"),
        ("norm", "f16"),
        ("gate_inp", "q8_0"),
    ]
    file = GGUFFile.open(synthesise("tiny-mixtral", tmp_path / "x.gguf", dtype="q4_k", tensor_types=rules))
    found = {name.removeprefix("blk.0."): tensor.dtype.name for name, tensor in file.tensors.items() if tensor.dtype}
    expected = {
        "ffn_down_exps.weight": "q6_k",
        "ffn_up_exps.weight": "q4_0",
        "attn_q.weight": "bf16",
        "attn_k.weight": "q4_k",
        "attn_norm.weight": "f32",
        "ffn_gate_inp.weight": "f32",
        "output.weight": "q4_k",
    }
    assert expected.items() <= found.items()


@pytest.mark.parametrize(
    ("wanted", "columns", "stored"),
    [
        ("q4_k", 256, "q4_k"),
        ("q4_k", 128, "q5_0"),
        ("q5_k", 128, "q5_1"),
        ("q6_k", 128, "q8_0"),
        ("q2_k", 128, "q4_0"),
        ("q3_k", 128, "q4_0"),
        ("iq4_xs", 128, "iq4_nl"),
        ("q4_0", 48, "f16"),
        ("q4_k", 48, "f16"),
        ("f32", 48, "f32"),
    ],
)
def test_rows_that_no_block_divides_fall_back(wanted: str, columns: int, stored: str) -> None:
    assert storage_type("blk.0.attn_k_b.weight", (4, 512, columns), dtypes.get(wanted)).name == stored


def test_the_number_of_layers_can_be_chosen(tmp_path: Path) -> None:
    file = GGUFFile.open(synthesise("tiny-deepseek-v3", tmp_path / "x.gguf", layers=2))
    hp = DeepSeek2Hyperparameters.from_file(file)
    assert (hp.layers, hp.leading_dense) == (2, 1)
    assert {name.split(".")[1] for name in file.tensors if name.startswith("blk.")} == {"0", "1"}
    assert (hp.expert_gate, hp.expert_groups, hp.expert_group_score) == ("sigmoid", 4, "top2_sum")
    assert "blk.1.exp_probs_b.bias" in file.tensors


def test_the_vocabulary_can_be_chosen(tmp_path: Path) -> None:
    file = GGUFFile.open(synthesise("tiny-mixtral", tmp_path / "x.gguf", layers=1, vocabulary=500))
    assert file.tensors["token_embd.weight"].shape == file.tensors["output.weight"].shape == (500, 256)
    assert len(file.metadata["tokenizer.ggml.tokens"]) == 500


def test_large_presets_have_the_shapes_of_the_real_models(tmp_path: Path) -> None:
    """V2-Lite's expert tensor, as in the published files; only one layer, and so dense, is written."""
    file = GGUFFile.open(synthesise("deepseek-v2-lite", tmp_path / "x.gguf", layers=1, dtype="q4_0"))
    hp = DeepSeek2Hyperparameters.from_file(file)
    assert (hp.heads, hp.nope_size, hp.rope_size, hp.value_size, hp.kv_rank, hp.q_rank) == (16, 128, 64, 128, 512, 0)
    assert (hp.experts, hp.experts_used, hp.experts_shared, hp.expert_feed_forward) == (64, 6, 2, 1408)
    assert file.tensors["token_embd.weight"].shape == (102400, 2048)
    assert file.tensors["blk.0.ffn_gate.weight"].shape == (10944, 2048)


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    synthesise("tiny-llama", tmp_path / "x.gguf", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"preset": "gpt-5"}, FormatError, 'unknown preset "gpt-5"; known: llama-7b'),
        ({"layers": 0}, FormatError, "0 layers"),
        ({"dialect": "odd"}, FormatError, 'unknown dialect "odd"'),
        ({"dtype": "q9"}, GraphError, '"q9" is none of q4_0'),
        ({"dtype": "i8"}, GraphError, '"i8" is none of q4_0'),
        ({"tensor_types": [("attn", "q9")]}, GraphError, 'unknown dtype "q9"'),
        ({"tensor_types": [("attn", "i8")]}, GraphError, '"i8" cannot hold weights'),
        ({"tensor_types": [("(", "q8_0")]}, GraphError, r'"\(" is not a regular expression'),
    ],
)
def test_wrong_requests_are_refused(tmp_path: Path, arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        synthesise(**{"preset": "tiny-llama", "out": tmp_path / "x.gguf", **arguments})
    assert not list(tmp_path.iterdir())


def test_made_up_words_are_all_different() -> None:
    assert len(set(made_up_words(120_000))) == 120_000
    with pytest.raises(FormatError, match="a vocabulary of 100 tokens"):
        dummy_vocabulary(100)
