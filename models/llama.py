"""llama: Llama 1 to 3, Mistral, and Mixtral (a mixture of experts in place of the feed-forward network).

T tokens, D model width, H heads, G key/value heads, W width of a head, N cells that attention looks at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

from graphrt import ops
from graphrt.errors import SettingsError
from graphrt.models.blocks import Attention, Decoder, Experts, FeedForward, Layer, RMSNorm, Rope, load_output
from graphrt.models.hyperparameters import LlamaHyperparameters
from graphrt.models.options import ModelOptions
from graphrt.models.routing import Routing
from graphrt.models.ubatch import UBatch
from graphrt.models.weights import Weights
from graphrt.tensor import Tensor


@dataclass(frozen=True)
class Projection:
    """x·wᵀ + b."""

    weight: Tensor  # [out, in]
    bias: Tensor | None  # [out]

    @classmethod
    def load(cls, weights: Weights, name: str, shape: tuple[int, int]) -> Projection:
        return cls(weights.take(f"{name}.weight", shape), weights.find(f"{name}.bias", shape[:1]))

    def __call__(self, x: Tensor) -> Tensor:
        y = ops.mul_mat(self.weight, x)
        return y if self.bias is None else ops.add(y, self.bias)


@dataclass(frozen=True)
class GroupedQueryAttention(Attention):
    """Softmax attention in which H / G query heads share one key/value head."""

    layer: int
    heads: int
    kv_heads: int
    rope: Rope
    q: Projection  # [H·W, D]
    k: Projection  # [G·W, D]
    v: Projection  # [G·W, D]
    output: Projection  # [D, H·W]

    @classmethod
    def load(cls, hp: LlamaHyperparameters, weights: Weights, layer: int, rope: Rope) -> GroupedQueryAttention:
        block, width, head = f"blk.{layer}.attn", hp.embedding, hp.head_size
        return cls(
            layer=layer,
            heads=hp.heads,
            kv_heads=hp.kv_heads,
            rope=rope,
            q=Projection.load(weights, f"{block}_q", (hp.heads * head, width)),
            k=Projection.load(weights, f"{block}_k", (hp.kv_heads * head, width)),
            v=Projection.load(weights, f"{block}_v", (hp.kv_heads * head, width)),
            output=Projection.load(weights, f"{block}_output", (width, hp.heads * head)),
        )

    @staticmethod
    def cache_layout(hp: LlamaHyperparameters) -> Mapping[str, tuple[int, int]]:
        return {"k": (hp.kv_heads, hp.head_size), "v": (hp.kv_heads, hp.head_size)}

    def __call__(self, x: Tensor, batch: UBatch) -> Tensor:
        tokens, layer = x.shape[0], self.layer
        q = self.q(x).reshape(tokens, self.heads, -1)  # [T, H, W]
        k = self.k(x).reshape(tokens, self.kv_heads, -1)  # [T, G, W]
        v = self.v(x).reshape(tokens, self.kv_heads, -1).named(f"Vcur-{layer}")  # [T, G, W]
        q = self.rope(q, batch.positions).named(f"Qcur-{layer}")  # [T, H, W]
        k = self.rope.for_cache(k, batch).named(f"Kcur-{layer}")  # [T, G, W]
        keys = batch.write(layer, "k", k)  # [N, G, W]
        values = batch.write(layer, "v", v)  # [N, G, W]
        turns = {"rope": self.rope.rotation(), "freq_factors": self.rope.freq_factors}
        y = batch.attend(q, keys, values, scale=1 / sqrt(q.shape[-1]), **turns).named(f"kqv-{layer}")  # [T, H, W]
        return self.output(y.reshape(tokens, -1))  # [T, D]


def load(hp: LlamaHyperparameters, weights: Weights, options: ModelOptions) -> Decoder:
    """The model of a file's hyperparameters and weights.

    Raises: FormatError if a tensor is missing or has another shape; SettingsError if an option is not for llama.
    """
    if options.mla is not None:
        raise SettingsError(
            f'[load] mla is "{options.mla}", but llama models have no latents to attend to: leave it out'
        )
    embedding = weights.take("token_embd.weight", (hp.vocabulary, hp.embedding))
    rope = Rope(hp.rope, weights.find("rope_freqs.weight", (hp.rope.dims // 2,)))
    attention = [GroupedQueryAttention.load(hp, weights, n, rope) for n in range(hp.layers)]
    return Decoder(
        embedding=embedding,
        layers=[_load_layer(hp, weights, n, each) for n, each in enumerate(attention)],
        output_norm=RMSNorm(weights.take("output_norm.weight", (hp.embedding,)), hp.norm_eps),
        output=load_output(weights, embedding),
        cache_layout=GroupedQueryAttention.cache_layout(hp),
    )


def _load_layer(hp: LlamaHyperparameters, weights: Weights, number: int, attention: Attention) -> Layer:
    width, hidden = hp.embedding, hp.feed_forward
    if hp.experts:
        # Mixtral renormalises the weights of the chosen experts; the file does not say so.
        routing = Routing(hp.experts, hp.experts_used, normalise=True)
        ffn: FeedForward | Experts = Experts.load(weights, number, routing, width, hidden)
    else:
        ffn = FeedForward.load(weights, number, width, hidden)
    return Layer(
        attention_norm=RMSNorm(weights.take(f"blk.{number}.attn_norm.weight", (width,)), hp.norm_eps),
        attention=attention,
        ffn_norm=RMSNorm(weights.take(f"blk.{number}.ffn_norm.weight", (width,)), hp.norm_eps),
        ffn=ffn,
    )
