"""Hugging Face folder to GGUF: pick the architecture, gather metadata, stream the tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from graphrt import dtypes
from graphrt.dtypes import Array, DType
from graphrt.errors import FormatError
from graphrt.models import file_types
from graphrt.models.convert import deepseek2, llama
from graphrt.models.convert.checkpoint import Checkpoint
from graphrt.models.convert.vocabulary import vocabulary_metadata
from graphrt.models.convert.weights import Weight
from graphrt.models.gguf_write import Progress, TensorToWrite, save
from graphrt.models.storage_types import storage_type

MODELS: dict[str, ModuleType] = {
    "llama": llama,
    "mistral": llama,
    "mixtral": llama,
    "deepseek_v2": deepseek2,
    "deepseek_v3": deepseek2,
}
DIALECTS = ("mla", "legacy", "both")
DTYPES = ("f32", "f16", "bf16", "q8_0")
QUANTIZATION_VERSION = 2
LAYER = re.compile(r"model\.layers\.(\d+)\.")


@dataclass
class ConversionReport:
    """What was written.

    Args:
        path: the GGUF file.
        architecture: its general.architecture.
        tensors: how many tensors.
        size: bytes of the file.
        notes: what a user should know (weights stored in another type than asked for, a missing tokenizer).
    """

    path: Path
    architecture: str
    tensors: int
    size: int
    notes: list[str] = field(default_factory=list)


def convert_folder(
    folder: str | Path,
    out: str | Path,
    dtype: str = "q8_0",
    progress: Progress | None = None,
    dialect: str = "mla",
) -> ConversionReport:
    """Write the model in a Hugging Face folder as a GGUF file.

    Args:
        folder: holds config.json, safetensors files and, usually, a tokenizer.
        out: the file to write; it appears only when complete.
        dtype: "f32", "f16", "bf16" or "q8_0", for all but norms, routers and one-dimensional weights, which stay f32.
        progress: called with the bytes written and the bytes in all.
        dialect: how a DeepSeek file keeps keys and values: "mla" (attn_k_b and attn_v_b, as llama.cpp wants),
            "legacy" (attn_kv_b) or "both".
    Raises: FormatError if the folder lacks something, or holds a model of an unknown kind.
    """
    if dialect not in DIALECTS:
        raise FormatError(f'[convert] unknown dialect "{dialect}"; known: {", ".join(DIALECTS)}')
    if dtype not in DTYPES:
        raise FormatError(f'[convert] cannot write "{dtype}"; known: {", ".join(DTYPES)}')
    checkpoint = Checkpoint(folder)
    kind = checkpoint.config.get("model_type")
    if kind not in MODELS:
        raise FormatError(f'[{checkpoint.folder.name}] model_type "{kind}" is unknown; known: {", ".join(MODELS)}')
    model = MODELS[kind]
    vocabulary, notes = vocabulary_metadata(checkpoint)
    metadata: dict[str, Any] = {
        "general.type": "model",
        "general.name": checkpoint.folder.resolve().name,
        "general.file_type": file_types.get(dtype).number,
        "general.quantization_version": QUANTIZATION_VERSION,
        **model.metadata(checkpoint.config, dialect),
        **vocabulary,
    }
    wanted = dtypes.get(dtype)
    tensors = [_stored(weight, wanted, notes) for weight in model.weights(checkpoint, dialect)]
    notes += _left_out(checkpoint)
    if window := checkpoint.config.get("sliding_window"):
        notes.append(f"the sliding window of {window} tokens has no place in the file: attention sees all tokens")
    save(out, model.ARCHITECTURE, metadata, tensors, progress)
    return ConversionReport(Path(out), model.ARCHITECTURE, len(tensors), Path(out).stat().st_size, notes)


def _left_out(checkpoint: Checkpoint) -> list[str]:
    """A note on layers beyond the model's, which predict further tokens.

    Raises: FormatError if any other tensor has no place in the file: without it the model would be another.
    """
    beyond: set[int] = set()
    unknown = []
    for name in checkpoint.unexpected:
        layer = LAYER.match(name)
        if layer and int(layer[1]) >= checkpoint.config["num_hidden_layers"]:
            beyond.add(int(layer[1]))
        else:
            unknown.append(name)
    if unknown:
        raise FormatError(
            f"[{checkpoint.folder.name}] {len(unknown)} tensors that GGUF has no place for: {', '.join(unknown[:5])}; "
            f"this variant of the model cannot be converted"
        )
    return [f"left out: layer {layer}, which predicts further tokens" for layer in sorted(beyond)]


def _stored(weight: Weight, wanted: DType, notes: list[str]) -> TensorToWrite:
    """A weight in its storage type."""
    dtype = storage_type(weight.name, weight.shape, wanted)
    if dtype is not wanted and dtype is not dtypes.f32:
        notes.append(
            f"{weight.name}: rows of {weight.shape[-1]} are not a multiple of {wanted.block}; "
            f"stored as {dtype.name}, not {wanted.name}"
        )
    return TensorToWrite(weight.name, dtype, weight.shape, _encoded(weight, dtype))


def _encoded(weight: Weight, dtype: DType) -> Callable[[], Iterator[Array]]:
    return lambda: (dtypes.from_f32(chunk, dtype) for chunk in weight.chunks())
