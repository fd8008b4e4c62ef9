"""The vocabulary in a GGUF file's metadata: tokens, their types and scores, special tokens, flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from graphrt.errors import FormatError
from graphrt.models.gguf_file import metadata_value

# Tokens that end a turn or a text, by their spelling: files seldom name all of theirs.
END_OF_GENERATION = frozenset(
    (
        "</s>",
        "<EOT>",
        "<|call|>",
        "<|end|>",
        "<|end_of_text|>",
        "<|endoftext|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|im_end|>",
        "<|return|>",
        "<end_of_turn>",
        "<end_of_utterance>",
        "<｜end▁of▁sentence｜>",
    )
)


class TokenType(IntEnum):
    """What a token is, as in `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """A checked vocabulary.

    Args:
        source: the file's name, for messages.
        model: "gpt2" (byte-level BPE) or "llama" (SentencePiece).
        pre: name of the pre-tokenizer of a BPE vocabulary.
        tokens: spelling by id.
        types: TokenType by id.
        scores: SentencePiece scores by id, f32; higher merges first.
        merges: BPE merges, "left right", best first.
        bos, eos, eot, unknown, padding: ids of special tokens, or None.
        add_bos, add_eos, add_space_prefix: what the file says, None where it is silent.
        end_of_generation: ids after which a model has said all it will.
        chat_template: Jinja source, or None.
    """

    source: str
    model: str
    pre: str
    tokens: list[str]
    types: list[TokenType]
    scores: list[float]
    merges: list[str]
    bos: int | None
    eos: int | None
    eot: int | None
    unknown: int | None
    padding: int | None
    add_bos: bool | None
    add_eos: bool | None
    add_space_prefix: bool | None
    end_of_generation: frozenset[int]
    chat_template: str | None

    @classmethod
    def from_metadata(cls, metadata: dict[str, Any], source: str) -> Vocabulary:
        """Read and check `tokenizer.*`.

        Raises: FormatError if a key is missing, of the wrong type, or does not fit the others.
        """
        tokens = _strings(metadata, "tokens", source)
        if not tokens:
            raise FormatError(
                f'[{source}] no "tokenizer.ggml.tokens": the file holds no vocabulary; convert the model again'
            )
        special = {
            name: _token_id(metadata, f"tokenizer.ggml.{name}_token_id", len(tokens), source)
            for name in ("bos", "eos", "eot", "eom", "unknown", "padding")
        }
        ending = {index for index, token in enumerate(tokens) if token in END_OF_GENERATION}
        ending |= {index for name in ("eos", "eot", "eom") if (index := special[name]) is not None}
        return cls(
            source=source,
            model=metadata_value(metadata, "tokenizer.ggml.model", str, source, ""),
            pre=metadata_value(metadata, "tokenizer.ggml.pre", str, source, "default"),
            tokens=tokens,
            types=_types(metadata, tokens, source),
            scores=_numbers(metadata, "scores", len(tokens), source, 0.0),
            merges=_strings(metadata, "merges", source),
            bos=special["bos"],
            eos=special["eos"],
            eot=special["eot"],
            unknown=special["unknown"],
            padding=special["padding"],
            add_bos=metadata_value(metadata, "tokenizer.ggml.add_bos_token", bool, source),
            add_eos=metadata_value(metadata, "tokenizer.ggml.add_eos_token", bool, source),
            add_space_prefix=metadata_value(metadata, "tokenizer.ggml.add_space_prefix", bool, source),
            end_of_generation=frozenset(ending),
            chat_template=metadata_value(metadata, "tokenizer.chat_template", str, source),
        )

    def ids_of(self, *types: TokenType) -> list[int]:
        """The ids of all tokens of these types."""
        return [index for index, kind in enumerate(self.types) if kind in types]


def _strings(metadata: dict[str, Any], name: str, source: str) -> list[str]:
    key = f"tokenizer.ggml.{name}"
    found = metadata.get(key, [])
    if not isinstance(found, list) or not all(type(item) is str for item in found):
        raise FormatError(f'[{source}] "{key}" is not an array of strings; convert the model again')
    return found


def _numbers(metadata: dict[str, Any], name: str, count: int, source: str, default: float) -> list[Any]:
    key = f"tokenizer.ggml.{name}"
    if key not in metadata:
        return [default] * count
    found = metadata[key]
    if not isinstance(found, np.ndarray) or len(found) != count:
        size = len(found) if isinstance(found, Sequence | np.ndarray) else "no"
        raise FormatError(f'[{source}] "{key}" holds {size} numbers for {count} tokens; convert the model again')
    return list(found.tolist())


def _types(metadata: dict[str, Any], tokens: list[str], source: str) -> list[TokenType]:
    """The types of all tokens; what ends a generation is never plain text, even where the file says so."""
    known = {int(kind): kind for kind in TokenType}
    numbers = _numbers(metadata, "token_type", len(tokens), source, TokenType.NORMAL)
    found = [known.get(number, TokenType.NORMAL) for number in numbers]
    return [
        TokenType.CONTROL if kind is TokenType.NORMAL and token in END_OF_GENERATION else kind
        for token, kind in zip(tokens, found, strict=True)
    ]


def _token_id(metadata: dict[str, Any], key: str, count: int, source: str) -> int | None:
    found: int | None = metadata_value(metadata, key, int, source)
    if found is not None and not 0 <= found < count:
        raise FormatError(f'[{source}] "{key}" is {found}, the vocabulary has {count} tokens; convert the model again')
    return found
