"""Whole models by their shapes alone: graphs whose weights have no data, for models larger than the machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graphrt import Graph, dtypes
from graphrt.models.blocks import Decoder, UBatch
from graphrt.models.convert.folder import MODELS
from graphrt.models.kv_cache import KVCache
from graphrt.models.model import ARCHITECTURES
from graphrt.models.presets import PRESETS
from graphrt.models.storage_types import storage_type
from graphrt.models.synth import RandomSource
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


def decoder(preset: str, layers: int | None = None, dtype: str = "q4_k", attention: str | None = None) -> Decoder:
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
    return architecture.load(hyperparameters, ShapeWeights(file), attention or architecture.attention[0])  # type: ignore[arg-type]


def graph(
    preset: str,
    layers: int | None = None,
    *,
    tokens: int = 1,
    rows: int = 1,
    cells: int = 4096,
    attention: str | None = None,
) -> Graph:
    """The graph of one ubatch of a preset's model, over a cache of `cells` cells; `rows` of its tokens get logits."""
    made = decoder(preset, layers, attention=attention)
    cache = KVCache(len(made.layers), cells, made.cache_layout)
    return made.graph(UBatch.make(cache, tokens, rows, cells))
