"""DeepSeek-V2, V2-Lite, V3 and R1: Hugging Face folder to GGUF.

Legend of dimensions: V vocabulary, D model, H heads, R rank of the latent, N part of a query or key without rope,
 W size of a value head, E experts, F hidden units.
"""

from __future__ import annotations

from math import isclose, log
from typing import Any

import numpy as np

from graphrt.dtypes import Array
from graphrt.errors import FormatError
from graphrt.models.convert.config import (
    Config,
    attention_factor,
    norm_eps,
    required,
    rope_metadata,
    rope_of,
    yarn_rotation,
)
from graphrt.models.convert.weights import Source, Weight, changed, copied, experts, feed_forward
from graphrt.models.hyperparameters import GROUP_SCORE_KEY, yarn_magnitude

ARCHITECTURE = "deepseek2"
SOFTMAX, SIGMOID = 1, 2


def metadata(config: Config, dialect: str) -> dict[str, Any]:
    """The `deepseek2.*` keys. Of the dialects only "mla" describes the heads of the absorbed form."""
    if config.get("rope_interleave") is False:
        raise FormatError(
            '[config.json] "rope_interleave": false is not supported; convert a model with interleaved rope'
        )
    heads, latent = required(config, "num_attention_heads"), required(config, "kv_lora_rank")
    rope, nope, value = (required(config, f"{name}_head_dim") for name in ("qk_rope", "qk_nope", "v"))
    attention: dict[str, Any] = {"head_count_kv": heads, "key_length": nope + rope, "value_length": value}
    if dialect == "mla":
        attention = {
            "head_count_kv": 1,
            "key_length": latent + rope,
            "value_length": latent,
            "key_length_mla": nope + rope,
            "value_length_mla": value,
        }
    attention |= {
        # llama.cpp wants the key even where queries have no low rank, unless the model has 27 layers.
        "q_lora_rank": config.get("q_lora_rank") or 0,
        "head_count": heads,
        "kv_lora_rank": latent,
        "layer_norm_rms_epsilon": norm_eps(config),
    }
    return {
        "deepseek2.block_count": required(config, "num_hidden_layers"),
        "deepseek2.context_length": required(config, "max_position_embeddings"),
        "deepseek2.embedding_length": required(config, "hidden_size"),
        "deepseek2.feed_forward_length": required(config, "intermediate_size"),
        "deepseek2.vocab_size": required(config, "vocab_size"),
        "deepseek2.rope.dimension_count": rope,
        **{f"deepseek2.attention.{name}": number for name, number in attention.items()},
        **_expert_metadata(config),
        **rope_metadata(config, ARCHITECTURE),
        **_yarn_magnitude(config),
    }


def _expert_metadata(config: Config) -> dict[str, Any]:
    sigmoid = config.get("scoring_func", _default_scoring(config)) == "sigmoid"
    found = {
        "deepseek2.leading_dense_block_count": config.get("first_k_dense_replace", 0),
        "deepseek2.expert_count": required(config, "n_routed_experts"),
        "deepseek2.expert_used_count": required(config, "num_experts_per_tok"),
        "deepseek2.expert_shared_count": config.get("n_shared_experts") or 0,
        "deepseek2.expert_feed_forward_length": required(config, "moe_intermediate_size"),
        "deepseek2.expert_weights_scale": float(config.get("routed_scaling_factor", 1.0)),
        "deepseek2.expert_weights_norm": bool(config.get("norm_topk_prob", False)),
        "deepseek2.expert_gating_func": SIGMOID if sigmoid else SOFTMAX,
    }
    groups = config.get("n_group") or 0
    if groups > 1 and (sigmoid or config.get("topk_method") != "greedy"):
        found |= {
            "deepseek2.expert_group_count": groups,
            "deepseek2.expert_group_used_count": required(config, "topk_group"),
            GROUP_SCORE_KEY: "top2_sum" if sigmoid else "max",
        }
    return found


def _default_scoring(config: Config) -> str:
    """How experts are scored where config.json, as transformers 5 writes it, does not say."""
    return "sigmoid" if config.get("model_type") == "deepseek_v3" else "softmax"


def _yarn_magnitude(config: Config) -> dict[str, Any]:
    """YaRN's magnitudes, ρ of the rotation and σ² of the scores, in llama.cpp's two numbers.

    transformers: ρ from mscale and mscale_all_dim, σ = g(mscale_all_dim), with g(m) = 1 + 0.1 · m · ln(factor).
    llama.cpp: ρ = attn_factor, σ = ρ · g(10 · yarn_log_multiplier); where that is 0, ρ = attn_factor · g(1).
    DeepSeek's own files have mscale = mscale_all_dim: ρ = 1, and the multiplier is a tenth of it.
    """
    rope = rope_of(config)
    if rope.kind != "yarn" or rope.number("factor") <= 1:
        return {}
    factor, rotation = rope.number("factor"), yarn_rotation(rope)
    scores = yarn_magnitude(factor, rope.number("mscale_all_dim", 0.0))
    if isclose(scores, rotation):
        return attention_factor(ARCHITECTURE, rotation / yarn_magnitude(factor))
    return {
        "deepseek2.rope.scaling.yarn_log_multiplier": (scores / rotation - 1) / log(factor),
        **attention_factor(ARCHITECTURE, rotation),
    }


def weights(checkpoint: Source, dialect: str) -> list[Weight]:
    """All tensors, in the order of the layers; those beyond num_hidden_layers (multi-token prediction) are left out."""
    config = checkpoint.config
    vocabulary, width = config["vocab_size"], config["hidden_size"]
    found = [copied(checkpoint, "token_embd.weight", "model.embed_tokens.weight", (vocabulary, width))]
    for layer in range(config["num_hidden_layers"]):
        found += _queries(checkpoint, layer) + _latent(checkpoint, layer, dialect) + _feed_forward(checkpoint, layer)
    found.append(copied(checkpoint, "output_norm.weight", "model.norm.weight", (width,)))
    if not config.get("tie_word_embeddings") and "lm_head.weight" in checkpoint:
        found.append(copied(checkpoint, "output.weight", "lm_head.weight", (vocabulary, width)))
    return found


def _queries(checkpoint: Source, layer: int) -> list[Weight]:
    config, ours, theirs = checkpoint.config, f"blk.{layer}", f"model.layers.{layer}"
    width, rank = config["hidden_size"], config.get("q_lora_rank")
    rows = config["num_attention_heads"] * (config["qk_nope_head_dim"] + config["qk_rope_head_dim"])
    found = [copied(checkpoint, f"{ours}.attn_norm.weight", f"{theirs}.input_layernorm.weight", (width,))]
    if not rank:
        return [*found, copied(checkpoint, f"{ours}.attn_q.weight", f"{theirs}.self_attn.q_proj.weight", (rows, width))]
    return [
        *found,
        copied(checkpoint, f"{ours}.attn_q_a.weight", f"{theirs}.self_attn.q_a_proj.weight", (rank, width)),
        copied(checkpoint, f"{ours}.attn_q_a_norm.weight", f"{theirs}.self_attn.q_a_layernorm.weight", (rank,)),
        copied(checkpoint, f"{ours}.attn_q_b.weight", f"{theirs}.self_attn.q_b_proj.weight", (rows, rank)),
    ]


def _latent(checkpoint: Source, layer: int, dialect: str) -> list[Weight]:
    """Keys and values: down to the latent, up again (whole, or split into keys and values), and the output."""
    config, ours, theirs = checkpoint.config, f"blk.{layer}", f"model.layers.{layer}.self_attn"
    width, heads, rank = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    nope, rope, value = (config[f"{name}_head_dim"] for name in ("qk_nope", "qk_rope", "v"))
    up, up_shape = f"{theirs}.kv_b_proj.weight", (heads * (nope + value), rank)

    def keys(values: Array) -> Array:
        return _per_head(values, heads)[:, :nope].swapaxes(1, 2)  # [H, R, N]

    def only_values(values: Array) -> Array:
        return _per_head(values, heads)[:, nope:]  # [H, W, R]

    found = [
        copied(checkpoint, f"{ours}.attn_kv_a_mqa.weight", f"{theirs}.kv_a_proj_with_mqa.weight", (rank + rope, width)),
        copied(checkpoint, f"{ours}.attn_kv_a_norm.weight", f"{theirs}.kv_a_layernorm.weight", (rank,)),
    ]
    if dialect in ("legacy", "both"):
        found.append(copied(checkpoint, f"{ours}.attn_kv_b.weight", up, up_shape))
    if dialect == "both":
        flat_keys, flat_values = (heads * rank, nope), (heads * value, rank)
        found += [
            changed(
                checkpoint, f"{ours}.attn_k_b.weight", up, up_shape, flat_keys, lambda a: keys(a).reshape(flat_keys)
            ),
            changed(
                checkpoint,
                f"{ours}.attn_v_b.weight",
                up,
                up_shape,
                flat_values,
                lambda a: only_values(a).reshape(flat_values),
            ),
        ]
    if dialect == "mla":
        found += [
            changed(checkpoint, f"{ours}.attn_k_b.weight", up, up_shape, (heads, rank, nope), keys),
            changed(checkpoint, f"{ours}.attn_v_b.weight", up, up_shape, (heads, value, rank), only_values),
        ]
    return [*found, copied(checkpoint, f"{ours}.attn_output.weight", f"{theirs}.o_proj.weight", (width, heads * value))]


def _per_head(values: Array, heads: int) -> Array:
    return np.reshape(values, (heads, -1, values.shape[-1]))  # [H, N + W, R]


def _feed_forward(checkpoint: Source, layer: int) -> list[Weight]:
    config, ours, theirs = checkpoint.config, f"blk.{layer}", f"model.layers.{layer}"
    width, source = config["hidden_size"], f"{theirs}.mlp"
    found = [copied(checkpoint, f"{ours}.ffn_norm.weight", f"{theirs}.post_attention_layernorm.weight", (width,))]
    if layer < config.get("first_k_dense_replace", 0):
        return found + feed_forward(checkpoint, ours, source, width, config["intermediate_size"])
    count, hidden = config["n_routed_experts"], config["moe_intermediate_size"]
    found.append(copied(checkpoint, f"{ours}.ffn_gate_inp.weight", f"{source}.gate.weight", (count, width)))
    bias = f"{source}.gate.e_score_correction_bias"
    if bias in checkpoint:
        found.append(copied(checkpoint, f"{ours}.exp_probs_b.bias", bias, (count,)))
    found += experts(checkpoint, ours, source, count, width, hidden)
    if shared := config.get("n_shared_experts"):
        found += feed_forward(checkpoint, ours, f"{source}.shared_experts", width, hidden * shared, "_shexp")
    return found
