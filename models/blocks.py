"""The parts that all decoder models share: norms, rotation, attention, feed-forward, experts, layers.

T tokens, R rows whose logits are asked for, D model width, V vocabulary, F hidden width, H heads, W width of a head,
E experts, U experts used.
Weights are [out, in], as mul_mat(w, x) = x·wᵀ takes them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graphrt import Graph, ops
from graphrt.graph import Phase
from graphrt.models.hyperparameters import RopeParameters
from graphrt.models.routing import Routing
from graphrt.models.ubatch import UBatch
from graphrt.models.weights import Weights
from graphrt.ops.rope import Rotation
from graphrt.tensor import Tensor


@dataclass(frozen=True)
class RMSNorm:
    """y = x / sqrt(mean(x²) + eps) · weight."""

    weight: Tensor  # [D]
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, eps=self.eps)


@dataclass(frozen=True)
class Rope:
    """Rotation of pairs (2i, 2i+1) of each head by angles that grow with the position."""

    parameters: RopeParameters
    freq_factors: Tensor | None = None  # [dims / 2], that the frequencies are divided by

    def rotation(self, first: int = 0) -> Rotation:
        """The same for rows whose elements from `first` on are rotated."""
        return Rotation(mode="normal", first=first, **vars(self.parameters))

    def __call__(self, x: Tensor, positions: Tensor, first: int = 0) -> Tensor:
        """x [T, H, W] -> [T, H, W], `dims` of W rotated from `first` on."""
        return ops.rope(x, positions, self.freq_factors, **vars(self.rotation(first)))

    def for_cache(self, k: Tensor, batch: UBatch) -> Tensor:
        """Keys [T, G, W] as the cache is to keep them: rotated, or, where attention rotates them, as they are."""
        return k if batch.cache.k_rotation == "unroped" else self(k, batch.positions)


class Attention(ABC):
    """The attention of one layer."""

    @abstractmethod
    def __call__(self, x: Tensor, batch: UBatch) -> Tensor:
        """x [T, D] -> [T, D]; writes the batch to the cache."""


@dataclass(frozen=True)
class FeedForward:
    """down(silu(gate(x)) · up(x))."""

    gate: Tensor  # [F, D]
    up: Tensor  # [F, D]
    down: Tensor  # [D, F]

    @classmethod
    def load(cls, weights: Weights, layer: int, width: int, hidden: int, kind: str = "") -> FeedForward:
        """The weights `blk.{layer}.ffn_*{kind}.weight`; `kind` is "_shexp" for shared experts."""
        block = f"blk.{layer}.ffn"
        return cls(
            gate=weights.take(f"{block}_gate{kind}.weight", (hidden, width)),
            up=weights.take(f"{block}_up{kind}.weight", (hidden, width)),
            down=weights.take(f"{block}_down{kind}.weight", (width, hidden)),
        )

    def __call__(self, x: Tensor) -> Tensor:
        gate = ops.mul_mat(self.gate, x)  # [T, F]
        up = ops.mul_mat(self.up, x)  # [T, F]
        return ops.mul_mat(self.down, ops.swiglu(gate, up))  # [T, D]


@dataclass(frozen=True)
class Experts:
    """A mixture of experts: the router sends each token through its best U experts; shared experts see every token."""

    layer: int
    routing: Routing
    router: Tensor  # [E, D]
    bias: Tensor | None  # [E], for the choice only
    gate: Tensor | None  # [E, F, D]; None where up holds both, the gate first
    up: Tensor  # [E, F, D], or [E, 2F, D]
    down: Tensor  # [E, D, F]
    shared: FeedForward | None

    @classmethod
    def load(
        cls, weights: Weights, layer: int, routing: Routing, width: int, hidden: int, shared_hidden: int = 0
    ) -> Experts:
        """The weights `blk.{layer}.ffn_*`; the gate and up weights of the experts may be one tensor."""
        block, experts = f"blk.{layer}", routing.experts
        both = weights.find(f"{block}.ffn_gate_up_exps.weight", (experts, 2 * hidden, width))
        gate = None if both else weights.take(f"{block}.ffn_gate_exps.weight", (experts, hidden, width))
        return cls(
            layer=layer,
            routing=routing,
            router=weights.take(f"{block}.ffn_gate_inp.weight", (experts, width)),
            bias=weights.find(f"{block}.exp_probs_b.bias", (experts,)),
            gate=gate,
            up=both or weights.take(f"{block}.ffn_up_exps.weight", (experts, hidden, width)),
            down=weights.take(f"{block}.ffn_down_exps.weight", (experts, width, hidden)),
            shared=FeedForward.load(weights, layer, width, shared_hidden, "_shexp") if shared_hidden else None,
        )

    def __call__(self, x: Tensor) -> Tensor:
        layer, (tokens, width) = self.layer, x.shape
        logits = ops.mul_mat(self.router, x).named(f"ffn_moe_logits-{layer}")  # [T, E]
        ids, shares = self.routing(logits, self.bias, layer)  # [T, U] i32, [T, U]
        each = x.reshape(tokens, 1, width)  # [T, 1, D]
        up = ops.mul_mat_id(self.up, each, ids).named(f"ffn_moe_up-{layer}")  # [T, U, F] or [T, U, 2F]
        if self.gate is None:
            hidden = ops.swiglu(up)  # [T, U, F]
        else:
            gate = ops.mul_mat_id(self.gate, each, ids).named(f"ffn_moe_gate-{layer}")  # [T, U, F]
            hidden = ops.swiglu(gate, up)  # [T, U, F]
        down = ops.mul_mat_id(self.down, hidden, ids).named(f"ffn_moe_down-{layer}")  # [T, U, D]
        out = ops.weighted_sum(down, shares).named(f"ffn_moe_out-{layer}")  # [T, D]
        if self.shared is not None:
            out = ops.add(out, self.shared(x).named(f"ffn_shexp-{layer}"))  # [T, D]
        return out


@dataclass(frozen=True)
class Layer:
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    attention_norm: RMSNorm
    attention: Attention
    ffn_norm: RMSNorm
    ffn: FeedForward | Experts

    def __call__(self, x: Tensor, number: int, batch: UBatch, last: bool) -> Tensor:
        """x [T, D] -> [T, D]; of the last layer, after attention, only the rows asked for: [R, D]."""
        normed = self.attention_norm(x).named(f"attn_norm-{number}")  # [T, D]
        attended = self.attention(normed, batch).named(f"attn_out-{number}")  # [T, D]
        if last:
            x, attended = batch.keep_rows(x), batch.keep_rows(attended)  # [R, D], [R, D]
        x = ops.add(x, attended).named(f"ffn_inp-{number}")  # [T, D] or [R, D], as all that follows
        normed = self.ffn_norm(x).named(f"ffn_norm-{number}")
        hidden = self.ffn(normed)
        if not hidden.name:  # experts without shared ones have named their sum
            hidden.named(f"ffn_out-{number}")
        return ops.add(x, hidden).named(f"l_out-{number}")


@dataclass(frozen=True)
class Decoder:
    """A whole model: embedding, layers, norm, output."""

    embedding: Tensor  # [V, D]
    layers: Sequence[Layer]
    output_norm: RMSNorm
    output: Tensor  # [V, D]; over the embedding's bytes where the two are tied
    cache_layout: Mapping[str, tuple[int, int]]  # the parts of a cell: name -> (heads, width)

    @property
    def vocabulary_size(self) -> int:
        return self.embedding.shape[0]

    def graph(self, batch: UBatch, phase: Phase | None = None) -> Graph:
        """The graph of one ubatch: its output is [R, V] f32 logits, or, where R is 0, no rows of the cache."""
        x = ops.get_rows(self.embedding, batch.tokens).named("inp_embd")  # [T, D]
        for number, layer in enumerate(self.layers):
            x = layer(x, number, batch, last=number == len(self.layers) - 1)  # [T, D]; [R, D] after the last
        if x.shape[0] == 0:
            return Graph(batch.written, phase=phase, notes=batch.notes)
        x = self.output_norm(x).named("result_norm")  # [R, D]
        logits = ops.mul_mat(self.output, x).named("result_output")  # [R, V]
        return Graph(logits, phase=phase, notes=batch.notes)


def dense(x: Tensor) -> Tensor:
    """x itself where its elements lie in order, else a copy in order."""
    return x if x.is_dense else ops.cont(x)


def load_output(weights: Weights, embedding: Tensor) -> Tensor:
    """The output weight [V, D]: its own, or, where the file has none, the embedding's bytes under the output's name.

    A leaf of its own lets the output go to a device by its name while the embedding stays on the host.
    """
    return weights.find("output.weight", embedding.shape) or embedding.alias("output.weight")
