"""The tokenizer of a Hugging Face folder as GGUF metadata: from tokenizer.model, else from tokenizer.json."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphrt.errors import FormatError
from graphrt.models.bpe import cutter, words_of
from graphrt.models.convert.checkpoint import Checkpoint
from graphrt.models.convert.config import required
from graphrt.models.convert.sentencepiece import read_sentencepiece
from graphrt.models.pretokenizers import PRETOKENIZERS
from graphrt.models.spm import SPACE
from graphrt.models.vocabulary import TokenType

# Cut differently by each pre-tokenizer: contractions, digits, capitals, punctuation, scripts, runs of spaces.
PROBE = (
    "Hello world, it's we'LL I'M 1234567 3.14 camelCase HTTPServer a_b (x+y)==z/* $5 100% ~`^ ...!!!\n\n  \n"
    "\t tabs  two   three \r\n naïve façade über Ελλάδα Привет 你好世界 こんにちは カタカナ 한국어 สวัสดี नमस्ते ½ ²³ x² "
    "🚀🚀 \u200d e\u0301 //\n  return 0;\n   "
)


@dataclass
class Tokens:
    """A vocabulary on its way to GGUF: spelling, score and type by id, merges, and the rest of the metadata."""

    spelling: dict[int, str] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)
    types: dict[int, TokenType] = field(default_factory=dict)
    merges: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)

    def add(self, index: int, spelling: str, kind: TokenType, score: float = 0.0) -> None:
        self.spelling[index], self.types[index], self.scores[index] = spelling, kind, score

    def id_of(self, spelling: str) -> int | None:
        return next((index for index, token in self.spelling.items() if token == spelling), None)


def vocabulary_metadata(checkpoint: Checkpoint) -> tuple[dict[str, Any], list[str]]:
    """The `tokenizer.*` keys for a folder, and notes for the user.

    Raises: FormatError if the tokenizer is damaged, of a kind that GGUF cannot hold, or not the model's.
    """
    try:
        tokens = _read(checkpoint)
    except FormatError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"[{checkpoint.folder.name}] the tokenizer's files are damaged ({error!r}); download them again"
        ) from error
    if tokens is None:
        return {"tokenizer.ggml.model": "no_vocab"}, ["no tokenizer.json or tokenizer.model: no vocabulary written"]
    _pad(checkpoint, tokens)
    order = range(len(tokens.spelling))
    found = {
        **tokens.metadata,
        "tokenizer.ggml.tokens": [tokens.spelling[index] for index in order],
        "tokenizer.ggml.token_type": np.array([tokens.types[index] for index in order], np.int32),
        "tokenizer.ggml.merges": tokens.merges,
    }
    if tokens.metadata["tokenizer.ggml.model"] == "llama":
        found["tokenizer.ggml.scores"] = np.array([tokens.scores[index] for index in order], np.float32)
    return found, []


def _read(checkpoint: Checkpoint) -> Tokens | None:
    """The tokenizer of the folder, or None if it has none."""
    if (checkpoint.folder / "tokenizer.model").is_file():
        tokens = _from_sentencepiece(checkpoint)
    elif (checkpoint.folder / "tokenizer.json").is_file():
        tokens = _from_json(checkpoint.json("tokenizer.json"))
    else:
        return None
    _add_special(checkpoint, tokens)
    return tokens


def _pad(checkpoint: Checkpoint, tokens: Tokens) -> None:
    """Give the rows of the embedding that have no token one that is never used."""
    size, last = required(checkpoint.config, "vocab_size"), max(tokens.spelling, default=-1)
    if last >= size:
        raise FormatError(
            f"[{checkpoint.folder.name}] the tokenizer has ids up to {last}, but vocab_size in config.json is {size}; "
            f"use the tokenizer that belongs to the model"
        )
    for index in range(size):
        if index not in tokens.spelling:
            tokens.add(index, f"[PAD{index}]", TokenType.UNUSED, -10000.0)


def _from_sentencepiece(checkpoint: Checkpoint) -> Tokens:
    model = read_sentencepiece(checkpoint.folder / "tokenizer.model")
    tokens = Tokens()
    for index, (spelling, score, kind) in enumerate(model.pieces):
        tokens.add(index, _user_text(spelling, kind), TokenType(kind), score)
    tokens.metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.add_space_prefix": model.add_space_prefix,
        **{f"tokenizer.ggml.{name}_token_id": index for name, index in model.special.items()},
    }
    added = {index: {"content": text} for text, index in checkpoint.optional_json("added_tokens.json").items()}
    for index, entry in (added | _added_in_config(checkpoint)).items():
        if index not in tokens.spelling:
            kind = TokenType.CONTROL if entry.get("special") else TokenType.USER_DEFINED
            tokens.add(index, _user_text(entry["content"], kind), kind, -1000.0)
    return tokens


def _user_text(spelling: str, kind: int) -> str:
    """User-defined tokens are looked for in the text itself, where a space is a space."""
    return spelling.replace(SPACE, " ") if kind == TokenType.USER_DEFINED else spelling


def _added_in_config(checkpoint: Checkpoint) -> dict[int, dict[str, Any]]:
    decoder = checkpoint.optional_json("tokenizer_config.json").get("added_tokens_decoder") or {}
    return {int(index): entry for index, entry in decoder.items()}


def _from_json(tokenizer: dict[str, Any]) -> Tokens:
    model = tokenizer.get("model") or {}
    if model.get("type", "BPE") != "BPE" or "merges" not in model:
        raise FormatError(f"[tokenizer.json] a {model.get('type')} tokenizer cannot be converted; only BPE can")
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    tokens = _scored_tokens(model, merges) if model.get("byte_fallback") else _byte_level_tokens(tokenizer, merges)
    for entry in tokenizer.get("added_tokens") or []:
        kind = TokenType.CONTROL if entry.get("special") else TokenType.USER_DEFINED
        unknown = entry["content"] == model.get("unk_token") and tokens.metadata["tokenizer.ggml.model"] == "llama"
        tokens.add(entry["id"], entry["content"], TokenType.UNKNOWN if unknown else kind)
    if adds_bos := _post_processor_bos(tokenizer):
        tokens.metadata["tokenizer.ggml.add_bos_token"] = adds_bos
    return tokens


def _byte_level_tokens(tokenizer: dict[str, Any], merges: list[str]) -> Tokens:
    tokens = Tokens(merges=merges)
    for spelling, index in tokenizer["model"]["vocab"].items():
        tokens.add(index, spelling, TokenType.NORMAL)
    tokens.metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": detect_pretokenizer(tokenizer)}
    return tokens


def _scored_tokens(model: dict[str, Any], merges: list[str]) -> Tokens:
    """A SentencePiece vocabulary from tokenizer.json: a token's score is the rank of the first merge that makes it."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        left, _, right = merge.partition(" ")
        ranks.setdefault(left + right, rank)
    tokens = Tokens()
    for spelling, index in model["vocab"].items():
        is_byte = len(spelling) == 6 and spelling.startswith("<0x")
        kind = TokenType.BYTE if is_byte else TokenType.NORMAL
        tokens.add(index, spelling, kind, -float(ranks.get(spelling, len(merges))))
    tokens.metadata = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default"}
    unknown = tokens.id_of(model.get("unk_token") or "")
    tokens.metadata["tokenizer.ggml.unknown_token_id"] = unknown
    return tokens


def detect_pretokenizer(tokenizer: dict[str, Any]) -> str:
    """The `tokenizer.ggml.pre` that leads to the same ids as tokenizer.json's own pre-tokenizer, for a probe text.

    Of several, it is the one whose words are most alike. They need not be the same: DeepSeek-V2's own patterns cut
    digits apart and llama.cpp's do not, but no token of its vocabulary joins two.
    Raises: FormatError if none does.
    """
    from tokenizers import Tokenizer

    bare = {**tokenizer, "added_tokens": [], "normalizer": None, "post_processor": None}
    try:
        theirs = Tokenizer.from_str(json.dumps(bare))
    except Exception as error:  # the package raises nothing more special
        raise FormatError(f"[tokenizer.json] cannot be read: {error}; download it again") from error
    if theirs.pre_tokenizer is None:
        raise FormatError("[tokenizer.json] has no pre_tokenizer; only byte-level BPE can be converted")
    words, ids = {word for word, _ in theirs.pre_tokenizer.pre_tokenize_str(PROBE)}, theirs.encode(PROBE).ids
    ignore_merges = bool(tokenizer["model"].get("ignore_merges", False))
    likeness: dict[str, float] = {}
    for name, known in PRETOKENIZERS.items():
        theirs.pre_tokenizer = cutter(known)
        if known.ignore_merges == ignore_merges and theirs.encode(PROBE).ids == ids:
            ours = set(words_of(known, PROBE))
            likeness[name] = len(words & ours) / len(words | ours)
    if likeness:
        return max(likeness, key=likeness.__getitem__)
    raise FormatError(
        f"[tokenizer.json] its pre-tokenizer is none of {', '.join(PRETOKENIZERS)}: GGUF has no name for it"
    )


def _post_processor_bos(tokenizer: dict[str, Any]) -> bool:
    """Whether the post-processor puts a special token before the text."""
    processor = tokenizer.get("post_processor") or {}
    steps = processor.get("processors", [processor])
    for step in steps:
        first = (step.get("single") or [{}])[0]
        if step.get("type") == "TemplateProcessing" and "SpecialToken" in first:
            return True
    return False


def _add_special(checkpoint: Checkpoint, tokens: Tokens) -> None:
    """Ids of special tokens, flags and the chat template, from tokenizer_config.json and config.json."""
    settings = checkpoint.optional_json("tokenizer_config.json")
    for name, theirs in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        spelling = settings.get(f"{theirs}_token")
        spelling = spelling.get("content") if isinstance(spelling, dict) else spelling
        index = tokens.id_of(spelling) if isinstance(spelling, str) else None
        if index is None:
            index = checkpoint.config.get(f"{theirs}_token_id")
            index = index[0] if isinstance(index, list) and index else index
        key = f"tokenizer.ggml.{name}_token_id"
        if isinstance(index, int) and index in tokens.spelling:
            tokens.metadata[key] = index
            if name in ("bos", "eos") and tokens.types[index] is TokenType.NORMAL:
                tokens.types[index] = TokenType.CONTROL
    for flag in ("add_bos_token", "add_eos_token"):
        if isinstance(settings.get(flag), bool):
            tokens.metadata[f"tokenizer.ggml.{flag}"] = settings[flag]
    if template := _chat_template(checkpoint, settings):
        tokens.metadata["tokenizer.chat_template"] = template


def _chat_template(checkpoint: Checkpoint, settings: dict[str, Any]) -> str | None:
    path = checkpoint.folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    found = settings.get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found}
        found = named.get("default") or next(iter(named.values()), None)
    return found if isinstance(found, str) else None
