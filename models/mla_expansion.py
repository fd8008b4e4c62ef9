"""The two matrices of multi-head latent attention, as each dialect of the files stores them.

T tokens, H heads, r width of the latent, dn width of a head's key without its rotated part, dv of its value.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphrt import ops
from graphrt.models.hyperparameters import DeepSeek2Hyperparameters
from graphrt.models.weights import Weights
from graphrt.tensor import Tensor


@dataclass(frozen=True)
class LatentExpansion:
    """Wk and Wv as the file stores them: nothing is converted, and nothing held twice.

    Files of the legacy dialect hold one matrix kv_b, per head dn rows of Wk and dv rows of Wv; mainline files hold Wkᵀ
    (k_b) and Wv (v_b); those of llama.cpp's PR 11446 hold all three, of which kv_b is taken.
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
            keys = weights.take(k_b, (heads, rank, nope))
            weights.require_in_range(keys)
            return cls(None, keys, weights.take(v_b, (heads, value, rank)))
        weights.require_in_range(joint)
        weights.ignore(k_b, v_b)
        per_head = joint.reshape(heads, nope + value, rank)  # [H, dn+dv, r]
        return cls(joint, per_head[:, :nope], per_head[:, nope:])

    @property
    def keys_transposed(self) -> bool:
        """Whether `keys` is Wkᵀ."""
        return self.joint is None

    def expand(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [T, r] -> keys [T, H, dn] and values [T, H, dv]."""
        if self.joint is None:
            keys = ops.mul_mat_transposed(self.keys, latents)  # [H, T, dn]
            values = ops.mul_mat(self.values, latents)  # [H, T, dv]
            return keys.permute(1, 0, 2), values.permute(1, 0, 2)
        heads, nope = self.keys.shape[:2]
        both = ops.mul_mat(self.joint, latents).reshape(latents.shape[0], heads, -1)  # [T, H, dn+dv]
        return both[..., :nope], both[..., nope:]

    def absorb(self, q: Tensor) -> Tensor:
        """Queries by head [H, T, dn] -> queries against latents [H, T, r], in f32: sums of products may pass f16's
        largest number."""
        product = ops.mul_mat if self.keys_transposed else ops.mul_mat_transposed
        return product(self.keys, q)
