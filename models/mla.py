"""Multi-head latent attention (MLA) of DeepSeek-V2 and V3: one table of variants.

T tokens, D model width, H heads, r width of the latent (kv_lora_rank), dn and dr width of a head's part without and
with rotation, dv width of a head's value, N cells that attention looks at.

A token's keys and values are linear in its latent c [r]:  k_nope[h] = Wk[h]·c,  v[h] = Wv[h]·c,  and one rotated key
part k_pe [dr] serves all heads. So there are two ways to attend, with the same result:

    expand     make keys and values of the latents:  q_nope · (Wk·c)
    absorb     bring queries to the latents' space:  (Wkᵀ·q_nope) · c, and the mix of latents to values with Wv

    variant     cache of a token           a prompt                            a token
    naive       keys, values of all heads  expands the new tokens              the same
    absorbed    [c | k_pe]                 absorbs                             absorbs
    pp-opt      c and k_pe                 absorbs; plain products and masks   the same, in another order of axes
    flashmla2   [c | k_pe]                 expands all cells, in passing       absorbs
    auto        [c | k_pe]                 of these two what the cost model (mla_cost.py) estimates as faster

Sources: DeepSeek-V2, arXiv:2405.04434; llama.cpp's PR 11446 (pp-opt); ik_llama.cpp (FlashMLA-2).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from graphrt import ops
from graphrt.models.blocks import Attention, RMSNorm, Rope, dense
from graphrt.models.hyperparameters import DeepSeek2Hyperparameters
from graphrt.models.mla_choice import Chooser
from graphrt.models.mla_expansion import LatentExpansion
from graphrt.models.ubatch import UBatch
from graphrt.models.weights import Weights
from graphrt.tensor import Tensor

PROMPT = 128  # tokens from which on flashmla2 expands, as in ik_llama.cpp


@dataclass(frozen=True)
class Query:
    """The queries of all heads, through a low rank rq (q_lora_rank) where the model has one."""

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
class LatentAttention(Attention):
    """What all variants share: queries, latents, and the output.

    Args (those that are no weights):
        scale: factor on the scores.
        nope, rank: dn and r.
        rope: rotates the part of queries and keys behind the first dn, or r.
        chooser: says which way is the faster one for a ubatch.
    """

    layer: int
    scale: float
    nope: int
    rank: int
    rope: Rope
    chooser: Chooser
    query: Query
    latent: Tensor  # [r+dr, D]
    latent_norm: RMSNorm
    expansion: LatentExpansion
    output: Tensor  # [D, H·dv]

    @classmethod
    def load(cls, hp: DeepSeek2Hyperparameters, weights: Weights, layer: int, chooser: Chooser) -> LatentAttention:
        block = f"blk.{layer}.attn"
        return cls(
            layer=layer,
            scale=hp.attention_scale,
            nope=hp.nope_size,
            rank=hp.kv_rank,
            rope=Rope(hp.rope),
            chooser=chooser,
            query=Query.load(hp, weights, block),
            latent=weights.take(f"{block}_kv_a_mqa.weight", (hp.kv_rank + hp.rope_size, hp.embedding)),
            latent_norm=RMSNorm(weights.take(f"{block}_kv_a_norm.weight", (hp.kv_rank,)), hp.norm_eps),
            expansion=LatentExpansion.load(hp, weights, block),
            output=weights.take(f"{block}_output.weight", (hp.embedding, hp.heads * hp.value_size)),
        )

    def __call__(self, x: Tensor, batch: UBatch) -> Tensor:
        tokens, layer = x.shape[0], self.layer
        q = self.rope(self.query(x), batch.positions, first=self.nope).named(f"Qcur-{layer}")  # [T, H, dn+dr]
        both = ops.mul_mat(self.latent, x).named(f"kv_cmpr_pe-{layer}").reshape(tokens, 1, -1)  # [T, 1, r+dr]
        latent = self.latent_norm(both[..., : self.rank]).named(f"kv_cmpr-{layer}")  # [T, 1, r]
        k_pe = dense(self.rope.for_cache(both[..., self.rank :], batch)).named(f"k_pe-{layer}")  # [T, 1, dr]
        y = self.attend(q, latent, k_pe, batch)  # [T, H, dv]
        return ops.mul_mat(self.output, dense(y).reshape(tokens, -1))  # [T, D]

    @staticmethod
    @abstractmethod
    def cache_layout(hp: DeepSeek2Hyperparameters) -> Mapping[str, tuple[int, int]]:
        """The parts of a cell: name -> (heads, width)."""

    @abstractmethod
    def attend(self, q: Tensor, latent: Tensor, k_pe: Tensor, batch: UBatch) -> Tensor:
        """q [T, H, dn+dr], latent [T, 1, r], k_pe [T, 1, dr] -> [T, H, dv]; writes the batch to the cache."""


class NaiveAttention(LatentAttention):
    """Keys and values of every head in the cache."""

    @staticmethod
    def cache_layout(hp: DeepSeek2Hyperparameters) -> Mapping[str, tuple[int, int]]:
        return {"k": (hp.heads, hp.nope_size + hp.rope_size), "v": (hp.heads, hp.value_size)}

    def attend(self, q: Tensor, latent: Tensor, k_pe: Tensor, batch: UBatch) -> Tensor:
        layer, (tokens, heads, _) = self.layer, q.shape
        k_nope, v = self.expansion.expand(latent.reshape(tokens, -1))  # [T, H, dn], [T, H, dv]
        every_head = ops.repeat(k_pe, shape=(tokens, heads, k_pe.shape[-1]))  # [T, H, dr]
        k = ops.concat(k_nope, every_head, axis=-1).named(f"Kcur-{layer}")  # [T, H, dn+dr]
        keys = batch.write(layer, "k", k)  # [N, H, dn+dr]
        values = batch.write(layer, "v", dense(v).named(f"Vcur-{layer}"))  # [N, H, dv]
        rope = self.rope.rotation(first=self.nope)
        return batch.attend(q, keys, values, scale=self.scale, rope=rope).named(f"kqv-{layer}")  # [T, H, dv]


class LatentCacheAttention(LatentAttention):
    """[c | k_pe] of each token in the cache, and both ways to attend to it."""

    @staticmethod
    def cache_layout(hp: DeepSeek2Hyperparameters) -> Mapping[str, tuple[int, int]]:
        return {"latent": (1, hp.kv_rank + hp.rope_size)}

    @abstractmethod
    def expands(self, batch: UBatch) -> bool:
        """Whether to expand for this ubatch, not to absorb."""

    def attend(self, q: Tensor, latent: Tensor, k_pe: Tensor, batch: UBatch) -> Tensor:
        batch.write(self.layer, "latent", latent)
        cells = batch.write(self.layer, "latent", k_pe, first=self.rank)  # [N, 1, r+dr]
        return (self.attend_expanded if self.expands(batch) else self.attend_absorbed)(q, cells, batch)

    def attend_expanded(self, q: Tensor, cells: Tensor, batch: UBatch) -> Tensor:
        """q [T, H, dn+dr], cells [N, 1, r+dr] -> [T, H, dv]: FlashMLA-2; no key or value outlives its tile."""
        expansion = self.expansion
        return ops.mla_attention(
            q,
            cells,
            expansion.keys,
            expansion.values,
            *batch.where,
            scale=self.scale,
            keys_transposed=expansion.keys_transposed,
            **batch.turns(self.rope.rotation(first=self.rank)),
        ).named(f"kqv-{self.layer}")

    def attend_absorbed(self, q: Tensor, cells: Tensor, batch: UBatch) -> Tensor:
        """q [T, H, dn+dr], cells [N, 1, r+dr] -> [T, H, dv]: one key/value head, the values a part of the keys."""
        layer, q_nope, q_pe = self.layer, q[..., : self.nope], q[..., self.nope :]  # [T, H, dn], [T, H, dr]
        absorbed = self.expansion.absorb(q_nope.permute(1, 0, 2)).named(f"q_nope_absorbed-{layer}")  # [H, T, r]
        q = ops.concat(absorbed.permute(1, 0, 2), q_pe, axis=-1)  # [T, H, r+dr]
        rope = self.rope.rotation(first=self.rank)
        y = batch.attend(q, cells, cells[..., : self.rank], scale=self.scale, rope=rope)  # [T, H, r]
        y = y.named(f"kqv_compressed-{layer}")
        values = ops.mul_mat(self.expansion.values, y.permute(1, 0, 2)).named(f"kqv-{layer}")  # [H, T, dv]
        return values.permute(1, 0, 2)  # [T, H, dv]


class AbsorbedAttention(LatentCacheAttention):
    """Absorbs always: llama.cpp's form."""

    def expands(self, batch: UBatch) -> bool:
        return False


class FlashMLA2Attention(LatentCacheAttention):
    """Expands for prompts, absorbs for decoding: FlashMLA-2 of ik_llama.cpp."""

    def expands(self, batch: UBatch) -> bool:
        return batch.tokens.shape[0] >= PROMPT


class AutoAttention(LatentCacheAttention):
    """Of both ways the one that the cost model estimates as faster."""

    def expands(self, batch: UBatch) -> bool:
        tokens, cells = batch.tokens.shape[0], batch.cell_positions.shape[0]
        choice = self.chooser.choose(self.layer, self.expansion, batch.cache.dtype, tokens, cells)
        batch.note(choice.reason)
        return choice.way == "expand"
