"""Llama and Mixtral: Hugging Face folder to GGUF.

Legend of dimensions: V vocabulary, D model, H heads, G heads of keys and values, N size of a head, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from graphrt.dtypes import Array
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
from graphrt.models.hyperparameters import yarn_magnitude

ARCHITECTURE = "llama"


def metadata(config: Config, dialect: str) -> dict[str, Any]:
    """The `llama.*` keys; `dialect` is of no importance here."""
    heads, head_size = required(config, "num_attention_heads"), _head_size(config)
    found = {
        "llama.block_count": required(config, "num_hidden_layers"),
        "llama.context_length": required(config, "max_position_embeddings"),
        "llama.embedding_length": required(config, "hidden_size"),
        "llama.feed_forward_length": required(config, "intermediate_size"),
        "llama.vocab_size": required(config, "vocab_size"),
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": config.get("num_key_value_heads") or heads,
        "llama.attention.key_length": head_size,
        "llama.attention.value_length": head_size,
        "llama.attention.layer_norm_rms_epsilon": norm_eps(config),
        "llama.rope.dimension_count": head_size,
    }
    if _experts(config):
        found |= {
            "llama.expert_count": _experts(config),
            "llama.expert_used_count": required(config, "num_experts_per_tok"),
        }
    rope = rope_of(config)
    if rope.kind == "yarn":
        found |= attention_factor(ARCHITECTURE, yarn_rotation(rope) / yarn_magnitude(rope.number("factor")))
    return found | rope_metadata(config, ARCHITECTURE)


def weights(checkpoint: Source, dialect: str) -> list[Weight]:
    """All tensors, in the order of the layers."""
    config = checkpoint.config
    vocabulary, width = config["vocab_size"], config["hidden_size"]
    found = [copied(checkpoint, "token_embd.weight", "model.embed_tokens.weight", (vocabulary, width))]
    if rope_of(config).kind == "llama3":
        factors = llama3_factors(config)
        found.append(Weight("rope_freqs.weight", factors.shape, lambda: [factors]))
    for layer in range(config["num_hidden_layers"]):
        found += _attention(checkpoint, layer) + _feed_forward(checkpoint, layer)
    found.append(copied(checkpoint, "output_norm.weight", "model.norm.weight", (width,)))
    if not config.get("tie_word_embeddings") and "lm_head.weight" in checkpoint:
        found.append(copied(checkpoint, "output.weight", "lm_head.weight", (vocabulary, width)))
    return found


def _attention(checkpoint: Source, layer: int) -> list[Weight]:
    config, ours, theirs = checkpoint.config, f"blk.{layer}", f"model.layers.{layer}"
    width, size = config["hidden_size"], _head_size(config)
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    found = [copied(checkpoint, f"{ours}.attn_norm.weight", f"{theirs}.input_layernorm.weight", (width,))]
    for name, count, interleaved in (("q", heads, True), ("k", kv_heads, True), ("v", kv_heads, False)):
        change = interleave(count) if interleaved else lambda values: values
        for kind, shape in (("weight", (count * size, width)), ("bias", (count * size,))):
            source = f"{theirs}.self_attn.{name}_proj.{kind}"
            if kind == "weight" or source in checkpoint:
                found.append(changed(checkpoint, f"{ours}.attn_{name}.{kind}", source, shape, shape, change))
    for kind, shape in (("weight", (width, heads * size)), ("bias", (width,))):
        source = f"{theirs}.self_attn.o_proj.{kind}"
        if kind == "weight" or source in checkpoint:
            found.append(copied(checkpoint, f"{ours}.attn_output.{kind}", source, shape))
    return found


def _feed_forward(checkpoint: Source, layer: int) -> list[Weight]:
    config, ours, theirs = checkpoint.config, f"blk.{layer}", f"model.layers.{layer}"
    width, hidden, count = config["hidden_size"], config["intermediate_size"], _experts(config)
    found = [copied(checkpoint, f"{ours}.ffn_norm.weight", f"{theirs}.post_attention_layernorm.weight", (width,))]
    if not count:
        return found + feed_forward(checkpoint, ours, f"{theirs}.mlp", width, hidden)
    old = f"{theirs}.block_sparse_moe"
    source = old if f"{old}.gate.weight" in checkpoint else f"{theirs}.mlp"
    router = copied(checkpoint, f"{ours}.ffn_gate_inp.weight", f"{source}.gate.weight", (count, width))
    return [*found, router, *experts(checkpoint, ours, source, count, width, hidden)]


def interleave(heads: int) -> Callable[[Array], Array]:
    """Reorder the rows of each head from (first half, second half) to pairs, as ggml's rope turns them."""

    def change(values: Array) -> Array:
        halves = values.reshape(heads, 2, -1, *values.shape[1:])  # [H, 2, N/2, D]
        return halves.swapaxes(1, 2).reshape(values.shape)  # [H·N, D]

    return change


def llama3_factors(config: Config) -> Array:
    """What each frequency is divided by, [N/2]: low ones by `factor`, high ones by 1, those between by a mixture.

    Source: Llama 3.1's rope scaling, transformers' modeling_rope_utils.py.
    """
    rope, size = rope_of(config), _head_size(config)
    factor, low, high = (rope.number(name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    original = rope.number("original_max_position_embeddings")
    wavelength = 2 * math.pi * rope.theta ** (np.arange(0, size, 2) / size)
    smooth = (original / wavelength - low) / (high - low)
    mixed = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(wavelength < original / high, 1.0, np.where(wavelength > original / low, factor, mixed))
    return factors.astype(np.float32)


def _experts(config: Config) -> int:
    return int(config.get("num_local_experts") or 0)


def _head_size(config: Config) -> int:
    return int(config.get("head_dim") or required(config, "hidden_size") // required(config, "num_attention_heads"))
