"""What a model's tokens take: bytes to read, and operations.

A prompt runs in ubatches of so many tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod

from graphrt.dtypes import DType
from graphrt.models.gguf_file import GGUFFile

UBATCH = 512  # tokens that run at once, where nothing else is said
CACHED = (".attn_k.weight", ".attn_v.weight", ".attn_kv_a_mqa.weight", ".attn_norm.weight")  # that the cache needs


def weight_bytes(file: GGUFFile, tokens: int = 1, ubatch: int = UBATCH) -> float:
    """Bytes of the weights that a prompt reads, or a decoded token: of the experts those that are used, at random."""
    return sum(
        tensor.nbytes * _used(file, name, min(rows, ubatch)) * -(-rows // ubatch)
        for name, tensor in file.tensors.items()
        if (rows := _rows(file, name, tokens, ubatch))
    )


def cache_bytes(file: GGUFFile) -> int:
    """Bytes of an f16 cache that attention reads for each token in the context."""
    metadata, name = file.metadata, file.architecture
    rank = metadata.get(f"{name}.attention.kv_lora_rank")
    keys, values = (metadata[f"{name}.attention.{kind}_length"] for kind in ("key", "value"))
    elements = rank + metadata[f"{name}.rope.dimension_count"] if rank else keys + values
    heads = 1 if rank else metadata[f"{name}.attention.head_count_kv"]
    return 2 * heads * elements * metadata[f"{name}.block_count"]


def operations(file: GGUFFile, tokens: int, ubatch: int = UBATCH) -> Mapping[str, float]:
    """Operations of the active weights for a prompt, by the kind of arithmetic that suits their types.

    Attention's own products, of queries, keys and values, are left out.
    """
    found: Counter[str] = Counter()
    for name, tensor in file.tensors.items():
        if tensor.dtype is not None:
            rows = _rows(file, name, tokens, ubatch)
            found[kind_of(tensor.dtype)] += 2 * rows * prod(tensor.shape) * _used(file, name, 1)
    return found


def kind_of(dtype: DType) -> str:
    """The arithmetic that products with such weights are done in, at best."""
    return "int8" if dtype.is_quantized else "bf16" if dtype.name == "bf16" else "f32"


def _rows(file: GGUFFile, name: str, tokens: int, ubatch: int) -> int:
    """The tokens of a prompt that a weight is multiplied with.

    Only the last token's logits are asked for: of the last layer's feed-forward part and of the output it alone counts,
    and of that layer's attention, but for what goes to the cache, the last ubatch.
    """
    last = f"blk.{file.metadata[f'{file.architecture}.block_count'] - 1}."
    if name == "token_embd.weight":
        return 0
    if name.startswith((f"{last}ffn_", "output")):
        return 1
    return (tokens - 1) % ubatch + 1 if name.startswith(last) and not name.endswith(CACHED) else tokens


def _used(file: GGUFFile, name: str, rows: int) -> float:
    """How much of a weight so many tokens use: of experts, as many as they choose at random."""
    if "_exps." not in name:
        return 1.0
    metadata, architecture = file.metadata, file.architecture
    share = metadata[f"{architecture}.expert_used_count"] / metadata[f"{architecture}.expert_count"]
    return 1 - (1 - share) ** rows
