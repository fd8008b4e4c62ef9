"""The MLA of llama.cpp's PR 11446, as a graph of plain ops: permute, cont, mul_mat and soft_max over a dense mask.

T tokens, H heads, r width of the latent, dn and dr width of a head's part without and with rotation, dv width of a
head's value, N cells that attention looks at.

It shows what the fused ops save: scores [H, T, N] and a mask [T, N] in memory, and a transposed copy of the latents at
each run. That copy is made on the fly, where the pull request caches the latents once more, transposed: a cache whose
cells lie in any order would have to be written element by element there.
"""

from __future__ import annotations

from collections.abc import Mapping

from graphrt import ops
from graphrt.errors import GraphError
from graphrt.models.hyperparameters import DeepSeek2Hyperparameters
from graphrt.models.mla import LatentAttention
from graphrt.models.ubatch import UBatch
from graphrt.tensor import Tensor


class PPOptAttention(LatentAttention):
    """Absorbs; for more tokens than heads with heads as the batch of the products, else with tokens as it."""

    @staticmethod
    def cache_layout(hp: DeepSeek2Hyperparameters) -> Mapping[str, tuple[int, int]]:
        return {"kv": (1, hp.kv_rank), "kr": (1, hp.rope_size)}

    def attend(self, q: Tensor, latent: Tensor, k_pe: Tensor, batch: UBatch) -> Tensor:
        if batch.cell_rotation is not None:
            raise GraphError(
                "[mla] pp-opt multiplies with the keys as the cache has them, and these are still to be rotated; "
                "for a shifted context or an unroped cache use another variant, such as mla=absorbed"
            )
        layer, (tokens, heads, _) = self.layer, q.shape
        q_nope, q_pe = q[..., : self.nope], q[..., self.nope :]  # [T, H, dn], [T, H, dr]
        kv = batch.write(layer, "kv", latent)[:, 0]  # [N, r]
        kr = batch.write(layer, "kr", k_pe)[:, 0]  # [N, dr]
        q_latent = self.expansion.absorb(q_nope.permute(1, 0, 2)).named(f"q_nope2-{layer}")  # [H, T, r]
        attend = self._by_head if tokens > heads else self._by_token
        return attend(q_latent, q_pe, kv, kr, batch.mask).named(f"kqv-{layer}")  # [T, H, dv]

    def _by_head(self, q_latent: Tensor, q_pe: Tensor, kv: Tensor, kr: Tensor, mask: Tensor) -> Tensor:
        """Each head's tokens are the rows of its products: the pull request's pp_opt."""
        scores = ops.mul_mat(kv, q_latent)  # [H, T, N]
        scores_pe = ops.mul_mat(kr, q_pe.permute(1, 0, 2))  # [H, T, N]
        shares = self._shares(scores, scores_pe, mask)  # [H, T, N]
        latents = ops.mul_mat(_transposed(kv), shares)  # [H, T, r]
        return ops.mul_mat(self.expansion.values, latents).permute(1, 0, 2)  # [T, H, dv]

    def _by_token(self, q_latent: Tensor, q_pe: Tensor, kv: Tensor, kr: Tensor, mask: Tensor) -> Tensor:
        """Each token's heads are the rows of its products; the values of a head are a product of one row."""
        scores = ops.mul_mat(kv, q_latent.permute(1, 0, 2))  # [T, H, N]
        scores_pe = ops.mul_mat(kr, q_pe)  # [T, H, N]
        shares = self._shares(scores.permute(1, 0, 2), scores_pe.permute(1, 0, 2), mask)  # [H, T, N]
        latents = ops.mul_mat(_transposed(kv), shares.permute(1, 0, 2))  # [T, H, r]
        tokens, heads, rank = latents.shape
        y = ops.mul_mat(self.expansion.values, latents.reshape(tokens, heads, 1, rank))  # [T, H, 1, dv]
        return y.reshape(tokens, heads, -1)  # [T, H, dv]

    def _shares(self, scores: Tensor, scores_pe: Tensor, mask: Tensor) -> Tensor:
        """Scores [H, T, N] of both parts of the keys -> each cell's share [H, T, N]."""
        total = ops.add(scores, scores_pe).named(f"kq-{self.layer}")
        return ops.soft_max(total, mask, scale=self.scale).named(f"kq_soft_max-{self.layer}")


def _transposed(kv: Tensor) -> Tensor:
    """Latents [N, r] -> [r, N]; blocks of quantized ones lie along r, so they are dequantized first."""
    return ops.cont(ops.transpose(ops.cast(kv, dtype="f32") if kv.dtype.is_quantized else kv))
