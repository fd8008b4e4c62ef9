"""llama.cpp's file types: which type each weight gets in a file that llama-quantize would call Q4_0 or Q4_K_M.

Such a file holds several types: one for most weights, finer ones for those whose rounding harms most. A dtype that
names no file type (q4_k, f16) stores all weights alike.

Source: llama.cpp, llama-quant.cpp (llama_tensor_get_type_impl), without an importance matrix.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from graphrt import dtypes
from graphrt.dtypes import DType
from graphrt.errors import GraphError

GROUPED = 4  # query heads to a head of keys, from which on values deserve more bits
EIGHT = 8  # experts: a model of so many has little attention, which may as well be exact
LAYERS_OF_70B = 80

_LAYER = re.compile(r"^blk\.(\d+)\.")
_VALUES = re.compile(r"\.attn_(v|qkv|kv_b)\.weight$")


@dataclass(frozen=True)
class ModelShape:
    """What of a model decides its weights' types.

    Args:
        layers: how many.
        experts: of a layer; 0 in a dense model.
        group: query heads to each head of keys.
        is_tied: whether the embedding is the output too.
    """

    layers: int
    experts: int
    group: int
    is_tied: bool = False

    @classmethod
    def of(cls, metadata: Mapping[str, Any], architecture: str, is_tied: bool = False) -> ModelShape:
        """From a GGUF file's metadata."""
        heads = metadata[f"{architecture}.attention.head_count"]
        return cls(
            layers=metadata[f"{architecture}.block_count"],
            experts=metadata.get(f"{architecture}.expert_count", 0),
            group=heads // metadata.get(f"{architecture}.attention.head_count_kv", heads),
            is_tied=is_tied,
        )


Rule = Callable[[int, ModelShape], DType | None]
"""The type of a layer's weight, or None: that of most weights."""


def _no_rule(layer: int, model: ModelShape) -> None:
    """The type of most weights."""


def _all(dtype: DType) -> Rule:
    """In every layer."""
    return lambda layer, model: dtype


def _eight_experts(dtype: DType | None, otherwise: DType | None = None) -> Rule:
    """In every layer of a model of eight experts."""
    return lambda layer, model: dtype if model.experts == EIGHT else otherwise


def _grouped(dtype: DType, otherwise: DType | None = None) -> Rule:
    """Where several query heads share the values."""
    return lambda layer, model: dtype if model.group >= GROUPED else otherwise


def _below(first: int, dtype: DType, otherwise: DType | None = None) -> Rule:
    """In the first layers."""
    return lambda layer, model: dtype if layer < first else otherwise


def _first(part: int, dtype: DType, otherwise: DType | None = None) -> Rule:
    """In the first 1/part of the layers."""
    return lambda layer, model: dtype if layer < model.layers // part else otherwise


def _more_bits(dtype: DType) -> Rule:
    """In the first and the last eighth of the layers, and in every third one between."""

    def rule(layer: int, model: ModelShape) -> DType | None:
        first, last = model.layers // 8, 7 * model.layers // 8
        return dtype if layer < first or layer >= last or (layer - first) % 3 == 2 else None

    return rule


@dataclass(frozen=True)
class FileType:
    """A way to store a model.

    Args:
        name: llama-quantize's, in lower case.
        number: general.file_type.
        most: the type of most weights.
        is_mixed: whether other types are mixed in.
        values, down, output: rules for attn_v, ffn_down and attn_output.
    """

    name: str
    number: int
    most: DType
    is_mixed: bool = True
    values: Rule = _no_rule
    down: Rule = _no_rule
    output: Rule = _no_rule

    def wanted(self, name: str, columns: int, model: ModelShape) -> DType:
        """The type for the weight `name` with rows of `columns`; `storage_type` then says whether it can have it."""
        if not self.is_mixed:
            return self.most
        if name == "output.weight" or (model.is_tied and name == "token_embd.weight"):
            is_q8 = self.most is dtypes.q8_0 or columns % self.most.block != 0
            return dtypes.q8_0 if is_q8 else dtypes.q6_k
        found = _LAYER.match(name)
        return self._in_layer(int(found[1]), name, model) if found else self.most

    def _in_layer(self, layer: int, name: str, model: ModelShape) -> DType:
        is_values = _VALUES.search(name)
        if model.experts == EIGHT and (is_values or name.endswith(".attn_k.weight")):
            return dtypes.q8_0
        if is_values:
            wanted = self.values(layer, model) or self.most
            is_70b = model.layers == LAYERS_OF_70B and model.group > 1
            return dtypes.q5_k if is_70b and wanted in (dtypes.q3_k, dtypes.q4_k) else wanted
        if ".ffn_down" in name:
            return self.down(layer, model) or self.most
        return (self.output(layer, model) if name.endswith(".attn_output.weight") else None) or self.most


_Q5_K_OF_EIGHT = _eight_experts(dtypes.q5_k)
_IQ4 = {"values": _grouped(dtypes.q5_k), "down": _first(8, dtypes.q5_k), "output": _Q5_K_OF_EIGHT}

_MIXES = (
    FileType("q4_0", 2, dtypes.q4_0),
    FileType("q4_1", 3, dtypes.q4_1),
    FileType("q8_0", 7, dtypes.q8_0),
    FileType("q5_0", 8, dtypes.q5_0),
    FileType("q5_1", 9, dtypes.q5_1),
    FileType(
        "q2_k",
        10,
        dtypes.q2_k,
        values=_grouped(dtypes.q4_k, otherwise=dtypes.q3_k),
        down=_all(dtypes.q3_k),
        output=_eight_experts(dtypes.q5_k, otherwise=dtypes.q3_k),
    ),
    FileType("q3_k_s", 11, dtypes.q3_k, output=_Q5_K_OF_EIGHT),
    FileType(
        "q3_k_m",
        12,
        dtypes.q3_k,
        values=_below(2, dtypes.q5_k, otherwise=dtypes.q4_k),
        down=_first(16, dtypes.q5_k, otherwise=dtypes.q4_k),
        output=_eight_experts(dtypes.q5_k, otherwise=dtypes.q4_k),
    ),
    FileType(
        "q3_k_l",
        13,
        dtypes.q3_k,
        values=_all(dtypes.q5_k),
        down=_all(dtypes.q5_k),
        output=_eight_experts(None, otherwise=dtypes.q5_k),
    ),
    FileType(
        "q4_k_s",
        14,
        dtypes.q4_k,
        values=_below(4, dtypes.q5_k),
        down=_first(8, dtypes.q5_k),
        output=_Q5_K_OF_EIGHT,
    ),
    FileType(
        "q4_k_m",
        15,
        dtypes.q4_k,
        values=_more_bits(dtypes.q6_k),
        down=_more_bits(dtypes.q6_k),
        output=_Q5_K_OF_EIGHT,
    ),
    FileType("q5_k_s", 16, dtypes.q5_k),
    FileType("q5_k_m", 17, dtypes.q5_k, values=_more_bits(dtypes.q6_k), down=_more_bits(dtypes.q6_k)),
    FileType("q6_k", 18, dtypes.q6_k),
    FileType("iq4_nl", 25, dtypes.iq4_nl, **_IQ4),
    FileType("iq4_xs", 30, dtypes.iq4_xs, **_IQ4),
)
_UNIFORM = (
    FileType("f32", 0, dtypes.f32, is_mixed=False),
    FileType("f16", 1, dtypes.f16, is_mixed=False),
    FileType("q3_k", 12, dtypes.q3_k, is_mixed=False),
    FileType("q4_k", 15, dtypes.q4_k, is_mixed=False),
    FileType("q5_k", 17, dtypes.q5_k, is_mixed=False),
    FileType("bf16", 32, dtypes.bf16, is_mixed=False),
    FileType("mxfp4", 38, dtypes.mxfp4, is_mixed=False),
)
FILE_TYPES = {each.name: each for each in (*_MIXES, *_UNIFORM)}


def get(name: str) -> FileType:
    """The file type of that name, upper or lower case.

    Raises: GraphError, naming all of them, if there is none.
    """
    found = FILE_TYPES.get(name.lower())
    if found is None:
        raise GraphError(f'[file type] "{name}" is none of {", ".join(FILE_TYPES)}')
    return found
