"""The numbers that shape a model, read from a GGUF file's metadata and checked.

Source: llama.cpp, llama-arch.cpp and models/{llama,deepseek2}.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, sqrt
from typing import Any

import numpy as np

from graphrt.errors import FormatError
from graphrt.models.gguf_file import GGUFFile, metadata_value

GATES = {0: "softmax", 1: "softmax", 2: "sigmoid", 3: "softmax_weight", 4: "sqrt_softplus"}
"""Names of `expert_gating_func`."""

GROUP_SCORE_KEY = "graphrt.expert_group_score"
"""How a group of experts is ranked: "max" or "top2_sum". No key of llama.cpp, which knows only the latter."""


class MetadataReader:
    """Typed look-ups of one architecture's keys.

    Args:
        file: an open GGUF file.
    """

    def __init__(self, file: GGUFFile) -> None:
        self.name = file.path.name
        self.architecture = file.architecture
        self._metadata = file.metadata

    def error(self, problem: str) -> FormatError:
        return FormatError(f"[{self.name}] {problem}; the metadata is wrong: convert the model again")

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        """An integer of at least `least`; an array, one number per layer, must hold equal ones."""
        value = self._find(key, default)
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and len(value) and (value == value[0]).all():
            value = value[0].item()
        if type(value) is not int:
            raise self.error(f'"{self.architecture}.{key}" must be one whole number, it is {value!r}')
        if not least <= value < 1 << 31:
            raise self.error(f'"{self.architecture}.{key}" is {value}, it must be at least {least}')
        return value

    def number(self, key: str, default: float | None = None, positive: bool = True) -> float:
        """A finite number, above zero if `positive`."""
        value = self._find(key, default)
        if type(value) not in (int, float) or not np.isfinite(value) or (positive and value <= 0):
            raise self.error(
                f'"{self.architecture}.{key}" must be a {"positive " if positive else ""}number, it is {value!r}'
            )
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        found: bool = metadata_value(self._metadata, f"{self.architecture}.{key}", bool, self.name, default)
        return found

    def text(self, key: str, default: str) -> str:
        """A string, by its full key."""
        found: str = metadata_value(self._metadata, key, str, self.name, default)
        return found

    def vocabulary(self) -> int:
        """The number of tokens: of the list of tokens, else as `vocab_size` says."""
        tokens = self._metadata.get("tokenizer.ggml.tokens")
        return self.integer("vocab_size", len(tokens) if isinstance(tokens, list) and tokens else None)

    def _find(self, key: str, default: Any) -> Any:
        found = self._metadata.get(f"{self.architecture}.{key}", default)
        if found is None:
            raise self.error(f'"{self.architecture}.{key}" is missing')
        return found


@dataclass(frozen=True)
class RopeParameters:
    """Rotary position embedding, as `ops.rope` takes it.

    Args:
        dims: elements of a head that are rotated.
        base: base of the frequencies.
        freq_scale: factor on positions, 1 / the factor by which the context was stretched.
        ext_factor: 1 for YaRN, else 0.
        beta_fast, beta_slow: ends of YaRN's ramp, in turns over the original context.
        original_context: tokens of the context before it was stretched.
        magnitude: factor on cosine and sine.
    """

    dims: int
    base: float
    freq_scale: float = 1.0
    ext_factor: float = 0.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    original_context: int = 0
    magnitude: float = 1.0


def read_rope(reader: MetadataReader, dims: int, context: int, log_multiplier: float = 0.0) -> RopeParameters:
    """The rope keys of a file.

    YaRN stretches angles and, unless `log_multiplier` says that the attention's scale does it, grows the rotation's
    magnitude by 1 + 0.1 · ln(factor).
    """
    base = reader.number("rope.freq_base", 10000.0)
    kind = reader.text(f"{reader.architecture}.rope.scaling.type", "linear")
    if kind not in ("none", "linear", "yarn"):
        raise reader.error(f'rope scaling "{kind}" is unknown; known are none, linear and yarn')
    if dims % 2:
        raise reader.error(f"rope turns pairs, but {dims} elements of a head are to be turned")
    factor = reader.number("rope.scaling.factor", 1.0) if kind != "none" else 1.0
    magnitude = reader.number("rope.scaling.attn_factor", 1.0)
    if kind != "yarn":
        return RopeParameters(dims, base, 1 / factor, magnitude=magnitude)
    if not log_multiplier:
        magnitude *= yarn_magnitude(factor)
    return RopeParameters(
        dims=dims,
        base=base,
        freq_scale=1 / factor,
        ext_factor=1.0,
        beta_fast=reader.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=reader.number("rope.scaling.yarn_beta_slow", 1.0),
        original_context=reader.integer("rope.scaling.original_context_length", context),
        magnitude=magnitude,
    )


def yarn_magnitude(factor: float, multiplier: float = 1.0) -> float:
    """YaRN's magnitude for a context stretched by `factor`: 1 + 0.1 · multiplier · ln(factor)."""
    return 1.0 if factor <= 1 else 1.0 + 0.1 * multiplier * log(factor)


@dataclass(frozen=True)
class LlamaHyperparameters:
    """A llama model, dense or a mixture of experts (`experts` > 0)."""

    vocabulary: int
    context: int
    embedding: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    feed_forward: int
    norm_eps: float
    rope: RopeParameters
    experts: int
    experts_used: int

    @classmethod
    def from_file(cls, file: GGUFFile) -> LlamaHyperparameters:
        """Read `llama.*`.

        Raises: FormatError if a key is missing, of the wrong type, or does not fit the others.
        """
        reader = MetadataReader(file)
        embedding, heads = reader.integer("embedding_length"), reader.integer("attention.head_count")
        kv_heads = reader.integer("attention.head_count_kv", heads)
        head_size = reader.integer("attention.key_length", embedding // heads)
        if reader.integer("attention.value_length", head_size) != head_size:
            raise reader.error("keys and values have different lengths, which llama models have not")
        if heads % kv_heads:
            raise reader.error(f"{heads} heads cannot share {kv_heads} heads of keys and values")
        context, dims = reader.integer("context_length"), reader.integer("rope.dimension_count", head_size)
        if dims > head_size:
            raise reader.error(f"rope turns {dims} elements of heads of {head_size}")
        experts = reader.integer("expert_count", 0, least=0)
        used = reader.integer("expert_used_count", 0, least=0)
        if used > experts or bool(used) != bool(experts):
            raise reader.error(f"{used} of {experts} experts are to be used")
        return cls(
            vocabulary=reader.vocabulary(),
            context=context,
            embedding=embedding,
            layers=reader.integer("block_count"),
            heads=heads,
            kv_heads=kv_heads,
            head_size=head_size,
            feed_forward=reader.integer("feed_forward_length"),
            norm_eps=reader.number("attention.layer_norm_rms_epsilon"),
            rope=read_rope(reader, dims, context),
            experts=experts,
            experts_used=used,
        )


@dataclass(frozen=True)
class DeepSeek2Hyperparameters:
    """A DeepSeek-V2 or -V3 model, in any of the three dialects of its files.

    Args (those that are not plain):
        leading_dense: layers before the first mixture of experts.
        q_rank: rank of the queries; 0 where they have none.
        kv_rank: width of the latent.
        nope_size, rope_size: a query or key of a head, without and with rotation.
        value_size: a value of a head.
        attention_scale: factor on the scores.
        expert_gate: one of GATES' names.
        expert_groups: 1 where experts are not grouped.
        expert_group_score: "max" or "top2_sum".
    """

    vocabulary: int
    context: int
    embedding: int
    layers: int
    leading_dense: int
    heads: int
    q_rank: int
    kv_rank: int
    nope_size: int
    rope_size: int
    value_size: int
    attention_scale: float
    feed_forward: int
    norm_eps: float
    rope: RopeParameters
    experts: int
    experts_used: int
    experts_shared: int
    expert_feed_forward: int
    expert_gate: str
    expert_weights_norm: bool
    expert_weights_scale: float
    expert_groups: int
    expert_groups_used: int
    expert_group_score: str

    @classmethod
    def from_file(cls, file: GGUFFile) -> DeepSeek2Hyperparameters:
        """Read `deepseek2.*`.

        Raises: FormatError if a key is missing, of the wrong type, or does not fit the others.
        """
        reader = MetadataReader(file)
        context, rope_size = reader.integer("context_length"), reader.integer("rope.dimension_count", 64)
        key_size, value_size = _head_sizes(reader)
        if key_size <= rope_size:
            raise reader.error(f"keys of {key_size} elements cannot hold a rotated part of {rope_size} and another")
        log_multiplier = reader.number("rope.scaling.yarn_log_multiplier", 0.0, positive=False)
        rope = read_rope(reader, rope_size, context, log_multiplier)
        layers = reader.integer("block_count")
        dense = reader.integer("leading_dense_block_count", 0, least=0)
        return cls(
            vocabulary=reader.vocabulary(),
            context=context,
            embedding=reader.integer("embedding_length"),
            layers=layers,
            leading_dense=min(dense, layers),
            heads=reader.integer("attention.head_count"),
            q_rank=_query_rank(reader, file),
            kv_rank=reader.integer("attention.kv_lora_rank"),
            nope_size=key_size - rope_size,
            rope_size=rope_size,
            value_size=value_size,
            attention_scale=_attention_scale(rope, log_multiplier, key_size),
            feed_forward=reader.integer("feed_forward_length"),
            norm_eps=reader.number("attention.layer_norm_rms_epsilon"),
            rope=rope,
            **_read_experts(reader),
        )


def _head_sizes(reader: MetadataReader) -> tuple[int, int]:
    """Elements of a key and a value of a head: where the file speaks of absorbed heads, `*_mla` has them."""
    keys = reader.integer("attention.key_length_mla", 0, least=0)
    values = reader.integer("attention.value_length_mla", 0, least=0)
    if bool(keys) != bool(values):
        raise reader.error(f"of key_length_mla {keys} and value_length_mla {values} only one is given")
    if keys:
        return keys, values
    return reader.integer("attention.key_length"), reader.integer("attention.value_length")


def _query_rank(reader: MetadataReader, file: GGUFFile) -> int:
    """Rank of the queries; files without say so by having attn_q, whatever the key says."""
    direct = "blk.0.attn_q.weight" in file.tensors
    return 0 if direct else reader.integer("attention.q_lora_rank")


def _attention_scale(rope: RopeParameters, log_multiplier: float, key_size: int) -> float:
    """(magnitude · g)² / sqrt(key size), g = 1 + log_multiplier · ln(factor) for YaRN.

    Where the multiplier is zero, the rotation's own magnitude is squared too: so llama.cpp reads such files.
    """
    magnitude = rope.magnitude if rope.ext_factor else 1.0
    growth = yarn_magnitude(1 / rope.freq_scale, 10 * log_multiplier) if rope.ext_factor else 1.0
    return (magnitude * growth) ** 2 / sqrt(key_size)


def _read_experts(reader: MetadataReader) -> dict[str, Any]:
    experts = reader.integer("expert_count", 0, least=0)
    used = reader.integer("expert_used_count", 0, least=0)
    groups = max(1, reader.integer("expert_group_count", 1, least=0))
    gate = reader.integer("expert_gating_func", 0, least=0)
    if gate not in GATES:
        raise reader.error(f"expert_gating_func {gate} is unknown; known are {', '.join(map(str, GATES))}")
    if used > experts or bool(used) != bool(experts):
        raise reader.error(f"{used} of {experts} experts are to be used")
    if experts % groups:
        raise reader.error(f"{experts} experts do not divide into {groups} groups")
    groups_used = max(1, reader.integer("expert_group_used_count", 1, least=0))
    if groups_used > groups:
        raise reader.error(f"{groups_used} of {groups} groups of experts are to be used")
    return {
        "experts": experts,
        "experts_used": used,
        "experts_shared": reader.integer("expert_shared_count", 0, least=0),
        "expert_feed_forward": reader.integer("expert_feed_forward_length"),
        "expert_gate": GATES[gate],
        "expert_weights_norm": reader.flag("expert_weights_norm", False),
        "expert_weights_scale": reader.number("expert_weights_scale", 0.0, positive=False),
        "expert_groups": groups,
        "expert_groups_used": groups_used,
        "expert_group_score": reader.text(GROUP_SCORE_KEY, "top2_sum"),
    }
