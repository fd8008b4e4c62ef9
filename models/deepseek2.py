"""deepseek2: DeepSeek-V2, V2-Lite, V3 and R1: multi-head latent attention (mla.py) and a mixture of experts."""

from __future__ import annotations

from graphrt.errors import SettingsError
from graphrt.models.blocks import Attention, Decoder, Experts, FeedForward, Layer, RMSNorm, load_output
from graphrt.models.hyperparameters import DeepSeek2Hyperparameters
from graphrt.models.mla import AbsorbedAttention, AutoAttention, FlashMLA2Attention, LatentAttention, NaiveAttention
from graphrt.models.mla_choice import EQUAL_RATES, Chooser, RateSource
from graphrt.models.mla_cost import Heads
from graphrt.models.mla_pp_opt import PPOptAttention
from graphrt.models.options import ModelOptions
from graphrt.models.routing import Routing
from graphrt.models.weights import Weights

VARIANTS: dict[str, type[LatentAttention]] = {
    "auto": AutoAttention,
    "naive": NaiveAttention,
    "absorbed": AbsorbedAttention,
    "pp-opt": PPOptAttention,
    "flashmla2": FlashMLA2Attention,
}


def load(
    hp: DeepSeek2Hyperparameters, weights: Weights, options: ModelOptions, rates: RateSource = EQUAL_RATES
) -> Decoder:
    """The model of a file's hyperparameters and weights.

    Args: rates of the machine, for mla=auto.
    Raises: FormatError if a tensor is missing or has another shape; SettingsError if options do not go together.
    """
    variant = VARIANTS[options.mla or "auto"]
    if variant is PPOptAttention and options.k_cache == "unroped":
        raise SettingsError(
            "[load] mla=pp-opt multiplies with keys as the cache has them, so these must be rotated; "
            "choose k_cache=roped, or another variant"
        )
    chooser = Chooser(Heads(hp.heads, hp.nope_size, hp.rope_size, hp.kv_rank, hp.value_size), rates)
    embedding = weights.take("token_embd.weight", (hp.vocabulary, hp.embedding))
    return Decoder(
        embedding=embedding,
        layers=[
            _load_layer(hp, weights, number, variant.load(hp, weights, number, chooser)) for number in range(hp.layers)
        ],
        output_norm=RMSNorm(weights.take("output_norm.weight", (hp.embedding,)), hp.norm_eps),
        output=load_output(weights, embedding),
        cache_layout=variant.cache_layout(hp),
    )


def _load_layer(hp: DeepSeek2Hyperparameters, weights: Weights, number: int, attention: Attention) -> Layer:
    return Layer(
        attention_norm=RMSNorm(weights.take(f"blk.{number}.attn_norm.weight", (hp.embedding,)), hp.norm_eps),
        attention=attention,
        ffn_norm=RMSNorm(weights.take(f"blk.{number}.ffn_norm.weight", (hp.embedding,)), hp.norm_eps),
        ffn=_load_ffn(hp, weights, number),
    )


def _load_ffn(hp: DeepSeek2Hyperparameters, weights: Weights, number: int) -> FeedForward | Experts:
    if number < hp.leading_dense or not hp.experts:
        return FeedForward.load(weights, number, hp.embedding, hp.feed_forward)
    routing = Routing(
        experts=hp.experts,
        used=hp.experts_used,
        gate=hp.expert_gate,
        normalise=hp.expert_weights_norm,
        scale=hp.expert_weights_scale,
        groups=hp.expert_groups,
        groups_used=hp.expert_groups_used,
        group_score=hp.expert_group_score,
    )
    shared = hp.expert_feed_forward * hp.experts_shared
    return Experts.load(weights, number, routing, hp.embedding, hp.expert_feed_forward, shared)
