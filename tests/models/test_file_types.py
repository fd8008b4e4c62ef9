"""llama.cpp's file types: the mixtures of types in files of llama-quantize."""

from __future__ import annotations

import pytest

from graphrt import dtypes
from graphrt.errors import GraphError
from graphrt.models.file_types import FILE_TYPES, ModelShape, get
from graphrt.models.synth import describe

MIXTRAL = ModelShape(layers=32, experts=8, group=4)
DENSE = ModelShape(layers=32, experts=0, group=1)


def stored(preset: str, layers: int, file_type: str) -> dict[str, str]:
    return {name: tensor.type_name for name, tensor in describe(preset, layers, file_type).tensors.items()}


def test_v2_lite_in_q4_k_m_mixes_six_types() -> None:
    """Rows of 1408 and 128 are no multiples of 256, so that Q4_K falls back to Q5_0 there, and Q6_K to Q8_0."""
    found = stored("deepseek-v2-lite", 4, "q4_k_m")
    expected = {
        "token_embd.weight": "q4_k",
        "output.weight": "q6_k",
        "blk.0.attn_q.weight": "q4_k",
        "blk.0.attn_k_b.weight": "q5_0",
        "blk.0.attn_v_b.weight": "q4_k",
        "blk.0.attn_norm.weight": "f32",
        "blk.0.ffn_down.weight": "q5_0",
        "blk.1.ffn_down_exps.weight": "q5_0",
        "blk.1.ffn_down_shexp.weight": "q4_k",
        "blk.1.ffn_gate_inp.weight": "f32",
        "blk.2.ffn_down_exps.weight": "q8_0",
        "blk.3.ffn_down_exps.weight": "q8_0",
        "blk.3.ffn_down_shexp.weight": "q6_k",
    }
    assert expected.items() <= found.items()


def test_mixtral_has_finer_attention() -> None:
    for file_type, expected in {
        "q4_0": {"attn_q": "q4_0", "attn_k": "q8_0", "attn_v": "q8_0", "attn_output": "q4_0", "ffn_down_exps": "q4_0"},
        "q4_k_m": {"attn_q": "q4_k", "attn_k": "q8_0", "attn_v": "q8_0", "attn_output": "q5_k"},
    }.items():
        found = stored("mixtral-8x7b", 2, file_type)
        assert found["output.weight"] == "q6_k"
        for layer in range(2):
            assert {f"blk.{layer}.{name}.weight": dtype for name, dtype in expected.items()}.items() <= found.items()
    assert [found[f"blk.{layer}.ffn_down_exps.weight"] for layer in range(2)] == ["q4_k", "q6_k"]


def test_more_bits_go_to_the_ends_and_every_third_layer() -> None:
    file_type = get("q4_k_m")
    finer = [
        layer
        for layer in range(32)
        if file_type.wanted(f"blk.{layer}.ffn_down.weight", 11008, DENSE) is not dtypes.q4_k
    ]
    assert finer == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]  # as in Llama-2-7B's Q4_K_M file


def test_dtypes_store_all_alike() -> None:
    assert set(stored("tiny-mixtral", 2, "q4_k").values()) == {"q4_k", "f32"}
    assert get("Q4_K").wanted("output.weight", 256, MIXTRAL) is dtypes.q4_k


def test_a_tied_embedding_is_stored_as_the_output() -> None:
    tied = ModelShape(layers=2, experts=0, group=1, is_tied=True)
    assert get("q4_0").wanted("token_embd.weight", 256, tied) is dtypes.q6_k
    assert get("q4_0").wanted("token_embd.weight", 256, DENSE) is dtypes.q4_0
    assert get("q8_0").wanted("token_embd.weight", 256, tied) is dtypes.q8_0


def test_every_dtype_for_weights_is_the_bulk_of_a_file_type() -> None:
    assert {each.most for each in FILE_TYPES.values()} == {*dtypes.FLOATS, *dtypes.QUANTIZED}
    with pytest.raises(GraphError, match='"q4_k_xl" is none of q4_0, '):
        get("q4_k_xl")
