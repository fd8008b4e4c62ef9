"""Whole models by their shapes alone: graphs whose weights have no data, for models larger than the machine."""

from __future__ import annotations

from dataclasses import dataclass, replace

import graphrt
from graphrt import Graph, dtypes, ops
from graphrt.models.blocks import Decoder, Layer
from graphrt.models.kv_cache import KVCache
from graphrt.models.synth import describe
from graphrt.models.ubatch import UBatch
from graphrt.tensor import Tensor


def decoder(preset: str, layers: int | None = None, dtype: str = "q4_k", mla: str | None = None) -> Decoder:
    """The model of a preset's shapes, with as many layers as asked for."""
    return graphrt.load(describe(preset, layers=layers, dtype=dtype), mla=mla).decoder


@dataclass(frozen=True)
class AdaptedLayer:
    """A layer and low-rank adapters behind it: x + scale · up·down·x, four nodes each."""

    layer: Layer
    adapters: list[tuple[Tensor, Tensor]]  # down [r, D] and up [D, r] of each

    def __call__(self, x: Tensor, number: int, batch: UBatch, last: bool) -> Tensor:
        x = self.layer(x, number, batch, last)
        for down, up in self.adapters:
            x = x + ops.mul_mat(up, ops.mul_mat(down, x)) * 0.5
        return x.named(f"l_adapted-{number}")


def adapted(model: Decoder, adapters: int, rank: int = 16) -> Decoder:
    """The model with so many adapters behind each layer: as many nodes as wanted at the same depth."""
    width = model.embedding.shape[1]

    def adapter(layer: int, number: int) -> tuple[Tensor, Tensor]:
        name = f"blk.{layer}.adapter_{number}"
        down = Tensor(f"{name}_down.weight", dtypes.f16, (rank, width), role="weight")
        return down, Tensor(f"{name}_up.weight", dtypes.f16, (width, rank), role="weight")

    layers = [AdaptedLayer(layer, [adapter(n, i) for i in range(adapters)]) for n, layer in enumerate(model.layers)]
    return replace(model, layers=layers)  # type: ignore[arg-type]


def graph(
    preset: str,
    layers: int | None = None,
    *,
    tokens: int = 1,
    rows: int = 1,
    cells: int = 4096,
    mla: str | None = None,
    adapters: int = 0,
) -> Graph:
    """The graph of one ubatch of a preset's model, over a cache of `cells` cells; `rows` of its tokens get logits."""
    made = decoder(preset, layers, mla=mla)
    if adapters:
        made = adapted(made, adapters)
    cache = KVCache(len(made.layers), cells, made.cache_layout)
    return made.graph(UBatch.make(cache, tokens, rows, cells), "decode" if tokens == 1 else "prompt")
