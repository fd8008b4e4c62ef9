"""deepseek2: DeepSeek-V2, V2-Lite, V3 and R1: multi-head latent attention (MLA) and a mixture of experts.

T tokens, D model width, H heads, r width of the latent (kv_lora_rank), dn and dr width of a head's part without and
with rotation, dv width of a head's value, rq rank of the query (q_lora_rank), N cells that attention looks at.

A token's keys and values are linear in its latent c [r]:  k_nope[h] = Wk[h]·c,  v[h] = Wv[h]·c,  and one rotated key
part k_pe [dr] serves all heads. Two ways to attend give the same result:

    naive      expands the latents of new tokens, and caches keys [H, dn + dr] and values [H, dv]
    absorbed   caches [c | k_pe]; q_nope·(Wk·c) = (Wkᵀ·q_nope)·c, so that queries are brought to the latents' space

Source: DeepSeek-V2, arXiv:2405.04434.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from graphrt import ops
from graphrt.models.blocks import Attention, Decoder, Experts, FeedForward, Layer, RMSNorm, Rope, load_output
from graphrt.models.hyperparameters import DeepSeek2Hyperparameters
from graphrt.models.routing import Routing
from graphrt.models.ubatch import UBatch
from graphrt.models.weights import Weights
from graphrt.tensor import Tensor


@dataclass(frozen=True)
class Query:
    """The queries of all heads, through a low rank where the model has one."""

    heads: int
    down: tuple[Tensor, RMSNorm] | None  # [rq, D] and its norm
    up: Tensor  # [H·(dn+dr), rq], or [H·(dn+dr), D]

    @classmethod
    def load(cls, hp: DeepSeek2Hyperparameters, weights: Weights, block: str) -> Query:
        rows = hp.heads * (hp.nope_size + hp.rope_size)
        direct = weights.find(f"{block}_q.weight", (rows, hp.embedding))
        if direct is not None:
            return cls(hp.heads, None, direct)
        down = weights.take(f"{block}_q_a.weight", (hp.q_rank, hp.embedding))
        norm = RMSNorm(weights.take(f"{block}_q_a_norm.weight", (hp.q_rank,)), hp.norm_eps)
        return cls(hp.heads, (down, norm), weights.take(f"{block}_q_b.weight", (rows, hp.q_rank)))

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, D] -> [T, H, dn + dr]."""
        tokens = x.shape[0]
        if self.down is not None:
            matrix, norm = self.down
            x = norm(ops.mul_mat(matrix, x))  # [T, rq]
        return ops.mul_mat(self.up, x).reshape(tokens, self.heads, -1)


@dataclass(frozen=True)
class LatentExpansion:
    """Wk and Wv as the file stores them: nothing is converted.

    Files of the legacy dialect hold one matrix kv_b, per head dn rows of Wk and dv rows of Wv; mainline files hold Wkᵀ
    (k_b) and Wv (v_b).
    """

    joint: Tensor | None  # [H·(dn+dv), r] where the file has kv_b
    keys: Tensor  # [H, dn, r], a view of kv_b; or [H, r, dn]: k_b
    values: Tensor  # [H, dv, r]

    @classmethod
    def load(cls, hp: DeepSeek2Hyperparameters, weights: Weights, block: str) -> LatentExpansion:
        heads, rank, nope, value = hp.heads, hp.kv_rank, hp.nope_size, hp.value_size
        k_b, v_b, kv_b = (f"{block}_{name}.weight" for name in ("k_b", "v_b", "kv_b"))
        joint = weights.find(kv_b, (heads * (nope + value), rank))
        if joint is None:
            return cls(None, weights.take(k_b, (heads, rank, nope)), weights.take(v_b, (heads, value, rank)))
        # Files of llama.cpp's PR 11446 hold kv_b's content once more, as two matrices.
        weights.ignore(k_b, v_b)
        per_head = joint.reshape(heads, nope + value, rank)  # [H, dn+dv, r]
        return cls(joint, per_head[:, :nope], per_head[:, nope:])

    def expand(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [T, r] -> keys [T, H, dn] and values [T, H, dv]."""
        if self.joint is None:
            keys = ops.mul_mat_transposed(self.keys, latent)  # [H, T, dn]
            values = ops.mul_mat(self.values, latent)  # [H, T, dv]
            return keys.permute(1, 0, 2), values.permute(1, 0, 2)
        heads, nope = self.keys.shape[:2]
        both = ops.mul_mat(self.joint, latent).reshape(latent.shape[0], heads, -1)  # [T, H, dn+dv]
        return both[..., :nope], both[..., nope:]

    def absorb(self, q: Tensor) -> Tensor:
        """Queries [T, H, dn] -> queries against latents [T, H, r]."""
        by_head = q.permute(1, 0, 2)  # [H, T, dn]
        product = ops.mul_mat if self.joint is None else ops.mul_mat_transposed
        return product(self.keys, by_head).permute(1, 0, 2)  # [T, H, r]

    def expand_values(self, latents: Tensor) -> Tensor:
        """Weighted sums of latents [T, H, r] -> values [T, H, dv]."""
        by_head = latents.permute(1, 0, 2)  # [H, T, r]
        return ops.mul_mat(self.values, by_head).permute(1, 0, 2)  # [T, H, dv]


@dataclass(frozen=True)
class LatentAttention(Attention):
    """What both ways share: queries, latents, and the output."""

    layer: int
    scale: float
    nope: int  # dn
    rank: int  # r
    rope: Rope
    query: Query
    latent: Tensor  # [r+dr, D]
    latent_norm: RMSNorm
    expansion: LatentExpansion
    output: Tensor  # [D, H·dv]

    @classmethod
    def load(cls, hp: DeepSeek2Hyperparameters, weights: Weights, layer: int) -> LatentAttention:
        block = f"blk.{layer}.attn"
        return cls(
            layer=layer,
            scale=hp.attention_scale,
            nope=hp.nope_size,
            rank=hp.kv_rank,
            rope=Rope(hp.rope),
            query=Query.load(hp, weights, block),
            latent=weights.take(f"{block}_kv_a_mqa.weight", (hp.kv_rank + hp.rope_size, hp.embedding)),
            latent_norm=RMSNorm(weights.take(f"{block}_kv_a_norm.weight", (hp.kv_rank,)), hp.norm_eps),
            expansion=LatentExpansion.load(hp, weights, block),
            output=weights.take(f"{block}_output.weight", (hp.embedding, hp.heads * hp.value_size)),
        )

    def __call__(self, x: Tensor, batch: UBatch) -> Tensor:
        tokens, layer = x.shape[0], self.layer
        q = self.query(x).named(f"q-{layer}")  # [T, H, dn+dr]
        q_nope = q[..., : self.nope]  # [T, H, dn]
        q_pe = self.rope(q[..., self.nope :], batch.positions).named(f"q_pe-{layer}")  # [T, H, dr]
        both = ops.mul_mat(self.latent, x).named(f"kv_cmpr_pe-{layer}").reshape(tokens, 1, -1)  # [T, 1, r+dr]
        latent = self.latent_norm(both[..., : self.rank]).named(f"kv_cmpr-{layer}")  # [T, 1, r]
        k_pe = self.rope(both[..., self.rank :], batch.positions).named(f"k_pe-{layer}")  # [T, 1, dr]
        y = self.attend(q_nope, q_pe, latent, k_pe, batch)  # [T, H, dv]
        return ops.mul_mat(self.output, dense(y).reshape(tokens, -1))  # [T, D]

    @staticmethod
    @abstractmethod
    def cache_layout(hp: DeepSeek2Hyperparameters) -> Mapping[str, tuple[int, int]]:
        """The parts of a cell: name -> (heads, width)."""

    @abstractmethod
    def attend(self, q_nope: Tensor, q_pe: Tensor, latent: Tensor, k_pe: Tensor, batch: UBatch) -> Tensor:
        """q_nope [T, H, dn], q_pe [T, H, dr], latent [T, 1, r], k_pe [T, 1, dr] -> [T, H, dv]."""


class NaiveAttention(LatentAttention):
    """Keys and values of every head in the cache."""

    @staticmethod
    def cache_layout(hp: DeepSeek2Hyperparameters) -> Mapping[str, tuple[int, int]]:
        return {"k": (hp.heads, hp.nope_size + hp.rope_size), "v": (hp.heads, hp.value_size)}

    def attend(self, q_nope: Tensor, q_pe: Tensor, latent: Tensor, k_pe: Tensor, batch: UBatch) -> Tensor:
        layer, (tokens, heads, _) = self.layer, q_nope.shape
        k_nope, v = self.expansion.expand(latent.reshape(tokens, -1))  # [T, H, dn], [T, H, dv]
        every_head = ops.repeat(k_pe, shape=(tokens, heads, k_pe.shape[-1]))  # [T, H, dr]
        q = ops.concat(q_nope, q_pe, axis=-1).named(f"Qcur-{layer}")  # [T, H, dn+dr]
        k = ops.concat(k_nope, every_head, axis=-1).named(f"Kcur-{layer}")  # [T, H, dn+dr]
        keys = batch.write(layer, "k", k)  # [N, H, dn+dr]
        values = batch.write(layer, "v", dense(v).named(f"Vcur-{layer}"))  # [N, H, dv]
        return batch.attend(q, keys, values, scale=self.scale).named(f"kqv-{layer}")  # [T, H, dv]


class AbsorbedAttention(LatentAttention):
    """Latents and rotated key parts in the cache: attention with one key/value head, the values a part of the keys."""

    @staticmethod
    def cache_layout(hp: DeepSeek2Hyperparameters) -> Mapping[str, tuple[int, int]]:
        return {"latent": (1, hp.kv_rank + hp.rope_size)}

    def attend(self, q_nope: Tensor, q_pe: Tensor, latent: Tensor, k_pe: Tensor, batch: UBatch) -> Tensor:
        layer = self.layer
        q_latent = self.expansion.absorb(q_nope).named(f"q_nope_absorbed-{layer}")  # [T, H, r]
        q = ops.concat(q_latent, q_pe, axis=-1).named(f"Qcur-{layer}")  # [T, H, r+dr]
        k = ops.concat(latent, k_pe, axis=-1).named(f"Kcur-{layer}")  # [T, 1, r+dr]
        keys = batch.write(layer, "latent", k)  # [N, 1, r+dr]
        y = batch.attend(q, keys, keys[..., : self.rank], scale=self.scale).named(f"kqv-{layer}")  # [T, H, r]
        return self.expansion.expand_values(y)  # [T, H, dv]


ATTENTION: dict[str, type[LatentAttention]] = {"absorbed": AbsorbedAttention, "naive": NaiveAttention}


def load(hp: DeepSeek2Hyperparameters, weights: Weights, attention: str) -> Decoder:
    """The model of a file's hyperparameters and weights, with one of ATTENTION's ways to attend.

    Raises: FormatError if a tensor is missing or has another shape.
    """
    variant = ATTENTION[attention]
    embedding = weights.take("token_embd.weight", (hp.vocabulary, hp.embedding))
    return Decoder(
        embedding=embedding,
        layers=[_load_layer(hp, weights, n, variant.load(hp, weights, n)) for n in range(hp.layers)],
        output_norm=RMSNorm(weights.take("output_norm.weight", (hp.embedding,)), hp.norm_eps),
        output=load_output(weights, embedding),
        cache_layout=variant.cache_layout(hp),
    )


def dense(x: Tensor) -> Tensor:
    """x itself where its elements lie in order, else a copy in order."""
    return x if x.is_dense else ops.cont(x)


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
