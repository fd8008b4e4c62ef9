"""Whole models by their shapes alone: graphs whose weights have no data, for models larger than the machine."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from graphrt import Graph, dtypes, ops
from graphrt.models.blocks import Decoder, Layer
from graphrt.models.convert.folder import MODELS
from graphrt.models.kv_cache import KVCache
from graphrt.models.mla_choice import equal_rates
from graphrt.models.model import ARCHITECTURES
from graphrt.models.options import ModelOptions
from graphrt.models.presets import PRESETS
from graphrt.models.storage_types import storage_type
from graphrt.models.synth import RandomSource
from graphrt.models.ubatch import UBatch
from graphrt.models.weights import Weights
from graphrt.tensor import Tensor


@dataclass
class ShapeFile:
    """Stands in for a GGUF file: the metadata, and every tensor's name with its leaf, which has no data."""

    architecture: str
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]
    path: Path = field(default=Path("shapes.gguf"))


class ShapeWeights(Weights):
    """Hands out the leaves of a ShapeFile."""

    file: ShapeFile  # type: ignore[assignment]

    def find(self, name: str, shape: tuple[int, ...]) -> Tensor | None:
        stored = self.file.tensors.get(name)
        if stored is not None and stored.shape != shape:
            self.file.tensors[name] = stored = Tensor(name, stored.dtype, shape, role="weight")
        return stored


def decoder(preset: str, layers: int | None = None, dtype: str = "q4_k", mla: str | None = None) -> Decoder:
    """The model of a preset's shapes, with as many layers as asked for."""
    config = PRESETS[preset] | ({} if layers is None else {"num_hidden_layers": layers})
    model = MODELS[config["model_type"]]
    tensors = {
        weight.name: Tensor(
            weight.name,
            storage_type(weight.name, weight.shape, dtypes.get(dtype)),
            weight.shape,
            role="weight",
        )
        for weight in model.weights(RandomSource(config), "mla")
    }
    metadata = model.metadata(config, "mla") | {f"{model.ARCHITECTURE}.vocab_size": config["vocab_size"]}
    file = ShapeFile(model.ARCHITECTURE, metadata, tensors)
    architecture = ARCHITECTURES[model.ARCHITECTURE]
    hyperparameters = architecture.read(file)  # type: ignore[arg-type]
    return architecture.load(hyperparameters, ShapeWeights(file), ModelOptions(mla=mla), equal_rates)  # type: ignore[arg-type]


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
