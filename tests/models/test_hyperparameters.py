"""Hyperparameters: defaults, dialects, and metadata that cannot be."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isclose, log, nan, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphrt.errors import FormatError
from graphrt.models.gguf_file import GGUFFile
from graphrt.models.gguf_write import TensorToWrite, save
from graphrt.models.hyperparameters import DeepSeek2Hyperparameters, LlamaHyperparameters, RopeParameters

LLAMA: dict[str, Any] = {
    "block_count": 2,
    "context_length": 128,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "vocab_size": 300,
}
DEEPSEEK: dict[str, Any] = LLAMA | {
    "attention.q_lora_rank": 32,
    "attention.kv_lora_rank": 48,
    "attention.head_count_kv": 1,
    "attention.key_length": 56,
    "attention.value_length": 48,
    "attention.key_length_mla": 24,
    "attention.value_length_mla": 16,
    "rope.dimension_count": 8,
    "expert_count": 8,
    "expert_used_count": 2,
    "expert_shared_count": 1,
    "expert_feed_forward_length": 24,
}
Reader = Callable[..., Any]


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    """The hyperparameters of a file with this metadata; a value of None removes a key."""

    def make(architecture: str, *, tensor: str = "w", other: dict[str, Any] | None = None, **changes: Any) -> Any:
        base = LLAMA if architecture == "llama" else DEEPSEEK
        keys = base | {key.replace("__", "."): value for key, value in changes.items()}
        metadata = {f"{architecture}.{key}": value for key, value in keys.items()} | (other or {})
        save(tmp_path / "x.gguf", architecture, metadata, [TensorToWrite.of(tensor, np.zeros(1, np.float32))])
        kind = LlamaHyperparameters if architecture == "llama" else DeepSeek2Hyperparameters
        return kind.from_file(GGUFFile.open(tmp_path / "x.gguf"))

    return make


def test_llama_has_defaults(read: Reader) -> None:
    hp = read("llama")
    assert (hp.kv_heads, hp.head_size, hp.experts, hp.experts_used) == (4, 16, 0, 0)
    assert hp.rope == RopeParameters(dims=16, base=10000.0)


def test_deepseek2_has_defaults(read: Reader) -> None:
    hp = read("deepseek2")
    assert (hp.leading_dense, hp.expert_gate, hp.expert_weights_norm, hp.expert_weights_scale) == (
        0,
        "softmax",
        False,
        0.0,
    )
    assert (hp.expert_groups, hp.expert_groups_used, hp.expert_group_score) == (1, 1, "top2_sum")
    assert isclose(hp.attention_scale, 1 / sqrt(24))


def test_the_vocabulary_is_counted_where_no_key_says_its_size(read: Reader) -> None:
    tokens = {"tokenizer.ggml.tokens": ["a", "b", "c"]}
    assert read("llama", vocab_size=None, other=tokens).vocabulary == 3
    assert read("llama", vocab_size=5, other=tokens).vocabulary == 5


@pytest.mark.parametrize("absorbed", [True, False])
def test_heads_are_the_same_in_every_dialect(read: Reader, absorbed: bool) -> None:
    plain = {"attention__key_length": 24, "attention__value_length": 16, "attention__head_count_kv": 4}
    without = {"attention__key_length_mla": None, "attention__value_length_mla": None}
    hp = read("deepseek2", **({} if absorbed else plain | without))
    assert (hp.nope_size, hp.rope_size, hp.value_size, hp.kv_rank) == (16, 8, 16, 48)


@pytest.mark.parametrize("rank", [None, 0, 32])
def test_a_direct_query_weight_decides_that_there_is_no_rank(read: Reader, rank: int | None) -> None:
    assert read("deepseek2", tensor="blk.0.attn_q.weight", attention__q_lora_rank=rank).q_rank == 0
    if rank != 32:
        with pytest.raises(FormatError, match="q_lora_rank"):
            read("deepseek2", attention__q_lora_rank=rank)


def test_yarn_grows_the_rotation_or_the_scores(read: Reader) -> None:
    yarn = {"rope__scaling__type": "yarn", "rope__scaling__factor": 40.0, "rope__scaling__original_context_length": 64}
    llama = read("llama", **yarn)
    assert llama.rope.ext_factor == 1
    assert isclose(llama.rope.freq_scale, 1 / 40)
    assert llama.rope.original_context == 64
    assert isclose(llama.rope.magnitude, 1 + 0.1 * log(40))
    v3 = read("deepseek2", **yarn, rope__scaling__yarn_log_multiplier=0.1)
    assert v3.rope.magnitude == 1
    assert isclose(v3.attention_scale, (1 + 0.1 * log(40)) ** 2 / sqrt(24), rel_tol=1e-6)


def test_the_scores_of_the_real_models(read: Reader) -> None:
    """V2-Lite and V3: heads of 192, a context stretched 40 times."""
    sizes = {"attention__key_length_mla": 192, "rope__dimension_count": 64}
    yarn = {"rope__scaling__type": "yarn", "rope__scaling__factor": 40.0}
    for multiplier, scale in ((0.0707, 0.1147214), (0.1, 0.1352338)):
        hp = read("deepseek2", **sizes, **yarn, rope__scaling__yarn_log_multiplier=multiplier)
        assert isclose(hp.attention_scale, scale, rel_tol=1e-5)


def test_linear_scaling_only_slows_the_angles(read: Reader) -> None:
    assert read("llama", rope__scaling__factor=4.0).rope == RopeParameters(dims=16, base=10000.0, freq_scale=0.25)
    assert read("llama", rope__scaling__type="none", rope__scaling__factor=4.0).rope.freq_scale == 1


def test_numbers_per_layer_may_be_equal(read: Reader) -> None:
    assert read("llama", feed_forward_length=np.array([96, 96], np.int32)).feed_forward == 96
    with pytest.raises(FormatError, match="must be one whole number"):
        read("llama", feed_forward_length=np.array([96, 97], np.int32))


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("llama", {"block_count": None}, '"llama.block_count" is missing'),
        ("llama", {"block_count": 0}, '"llama.block_count" is 0, it must be at least 1'),
        ("llama", {"block_count": 1 << 40}, '"llama.block_count" is 1099511627776'),
        ("llama", {"block_count": "2"}, "must be one whole number, it is '2'"),
        ("llama", {"block_count": True}, "must be one whole number, it is True"),
        ("llama", {"vocab_size": None}, '"llama.vocab_size" is missing'),
        ("llama", {"attention__layer_norm_rms_epsilon": nan}, "must be a positive number, it is nan"),
        ("llama", {"attention__layer_norm_rms_epsilon": 0.0}, "must be a positive number, it is 0.0"),
        ("llama", {"attention__head_count_kv": 3}, "4 heads cannot share 3 heads of keys and values"),
        ("llama", {"attention__value_length": 8}, "keys and values have different lengths"),
        ("llama", {"rope__dimension_count": 32}, "rope turns 32 elements of heads of 16"),
        ("llama", {"rope__dimension_count": 7}, "rope turns pairs, but 7 elements"),
        ("llama", {"rope__freq_base": -1.0}, '"llama.rope.freq_base" must be a positive number'),
        ("llama", {"rope__scaling__factor": inf}, '"llama.rope.scaling.factor" must be a positive number, it is inf'),
        ("llama", {"rope__scaling__type": "dynamic"}, 'rope scaling "dynamic" is unknown'),
        ("llama", {"rope__scaling__type": 3}, '"llama.rope.scaling.type" is 3, not str'),
        ("llama", {"expert_count": 4}, "0 of 4 experts are to be used"),
        ("llama", {"expert_count": 4, "expert_used_count": 5}, "5 of 4 experts are to be used"),
        ("deepseek2", {"attention__kv_lora_rank": None}, '"deepseek2.attention.kv_lora_rank" is missing'),
        ("deepseek2", {"attention__value_length_mla": None}, "only one is given"),
        ("deepseek2", {"attention__key_length_mla": 8}, "keys of 8 elements cannot hold a rotated part of 8"),
        ("deepseek2", {"expert_gating_func": 9}, "expert_gating_func 9 is unknown; known are 0, 1, 2, 3, 4"),
        ("deepseek2", {"expert_group_count": 3}, "8 experts do not divide into 3 groups"),
        ("deepseek2", {"expert_group_count": 4, "expert_group_used_count": 5}, "5 of 4 groups of experts"),
        ("deepseek2", {"expert_weights_norm": 1}, '"deepseek2.expert_weights_norm" is 1, not bool'),
    ],
)
def test_what_cannot_be_is_named(read: Reader, architecture: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=rf"^\[x\.gguf\] .*{message}.*; .*convert the model again"):
        read(architecture, **changes)


def test_a_file_must_name_its_architecture(tmp_path: Path) -> None:
    save(tmp_path / "x.gguf", "", {}, [])
    with pytest.raises(FormatError, match=r'no "general\.architecture"'):
        LlamaHyperparameters.from_file(GGUFFile.open(tmp_path / "x.gguf"))
