"""Make a GGUF model of a known shape with random weights: for benchmarks and tests of models too large to download.
Or describe one, for plans of models too large to make.

The tensors and metadata are those that the converter would write for such a model, so llama.cpp loads the file too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from graphrt import dtypes
from graphrt.dtypes import Array, DType
from graphrt.errors import FormatError, GraphError
from graphrt.models import file_types
from graphrt.models.convert.folder import DIALECTS, MODELS, QUANTIZATION_VERSION
from graphrt.models.convert.weights import Weight
from graphrt.models.file_types import ModelShape
from graphrt.models.gguf_file import FileTensor, GGUFFile
from graphrt.models.gguf_header import DEFAULT_ALIGNMENT, VERSIONS, Header
from graphrt.models.gguf_memory import allocate
from graphrt.models.gguf_write import Progress, TensorToWrite, save
from graphrt.models.presets import PRESETS
from graphrt.models.random_weights import RandomWeights
from graphrt.models.storage_types import storage_type
from graphrt.models.vocabulary import TokenType

SPECIAL_TOKENS = {"<unk>": TokenType.UNKNOWN, "<s>": TokenType.CONTROL, "</s>": TokenType.CONTROL}


class RandomSource:
    """Stands in for a folder of weights: it has each tensor that a preset's model wants, but no values."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def __contains__(self, name: str) -> bool:
        biased = self.config.get("scoring_func") == "sigmoid"
        return name == "lm_head.weight" or (biased and name.endswith("e_score_correction_bias"))

    def expect(self, name: str, shape: tuple[int, ...]) -> None:
        """Every shape is as expected."""

    def read(self, name: str, rows: slice = slice(None)) -> Array:
        raise GraphError(f"[{name}] a preset has no values to read; draw them")

    pieces = read


def synthesise(
    preset: str,
    out: str | Path,
    layers: int | None = None,
    dtype: str = "q8_0",
    tensor_types: Sequence[tuple[str, str]] = (),
    seed: int = 0,
    progress: Progress | None = None,
    dialect: str = "mla",
    vocabulary: int | None = None,
) -> Path:
    """Write a GGUF file with random weights.

    Args:
        preset: a name of PRESETS.
        out: the file; it appears only when complete.
        layers: how many, instead of the model's own number; the leading dense ones stay first.
        dtype: a file type as llama-quantize has them, with its mixture of types (q4_k_m, q4_0), or a dtype for all
            (q4_k, bf16); norms, routers and one-dimensional weights are f32, and rows that are not a multiple of 256
            fall back from K-quants as in llama-quantize.
        tensor_types: (regex, dtype): the first whose regex is found in a tensor's name decides its type.
        seed: equal seeds give equal files.
        progress: called with the bytes written and the bytes in all.
        dialect: of a DeepSeek file: "mla", "legacy" or "both".
        vocabulary: how many tokens, instead of the model's own number.
    Returns: the file.
    Raises: FormatError if the preset or dialect is unknown, GraphError if a dtype is, or a regex is not one.
    """
    config = _config(preset, layers, dialect, vocabulary)
    model, random = MODELS[config["model_type"]], RandomWeights(seed)
    metadata = {
        "general.name": f"{preset} with random weights",
        "general.file_type": file_types.get(dtype).number,
        "general.quantization_version": QUANTIZATION_VERSION,
        **model.metadata(config, dialect),
        **dummy_vocabulary(config["vocab_size"]),
    }
    tensors = [
        _random_tensor(weight, stored, random)
        for weight, stored in _stored_weights(config, metadata, dtype, tensor_types, dialect)
    ]
    save(out, model.ARCHITECTURE, metadata, tensors, progress)
    return Path(out)


def describe(
    preset: str,
    layers: int | None = None,
    dtype: str = "q8_0",
    tensor_types: Sequence[tuple[str, str]] = (),
    dialect: str = "mla",
    vocabulary: int | None = None,
) -> GGUFFile:
    """The file that `synthesise` would write, without vocabulary and data: to plan a model that is not there.

    Args, Raises: as for `synthesise`.
    """
    config = _config(preset, layers, dialect, vocabulary)
    model, path = MODELS[config["model_type"]], Path(preset)
    metadata = {"general.architecture": model.ARCHITECTURE, **model.metadata(config, dialect)}
    tensors = {}
    for weight, stored in _stored_weights(config, metadata, dtype, tensor_types, dialect):
        nbytes = prod(weight.shape) // stored.block * stored.nbytes
        tensors[weight.name] = FileTensor(
            weight.name, stored, stored.name, weight.shape, path=path, offset=0, nbytes=nbytes, mapping=None
        )
    header = Header(VERSIONS[-1], DEFAULT_ALIGNMENT, metadata, tensors=[], data_at=0)
    return GGUFFile(path, header, tensors, size=sum(tensor.nbytes for tensor in tensors.values()))


def synthesise_in_memory(
    preset: str,
    layers: int | None = None,
    dtype: str = "q8_0",
    vocabulary: int | None = None,
    random: RandomWeights | None = None,
) -> GGUFFile:
    """The file that `synthesise` would write, without vocabulary and in memory alone: where no disk is large enough.

    Args: as for `synthesise`; `random` draws the weights, RandomWeights(seed=0) where it is None.
    Raises: as `synthesise`; PlacementError if there is no room.
    """
    file, random = describe(preset, layers, dtype, vocabulary=vocabulary), random or RandomWeights(seed=0)
    for name, tensor in file.tensors.items():
        assert tensor.dtype is not None
        memory = allocate(file.path, tensor.nbytes)
        room, done = np.frombuffer(memory, np.uint8), 0
        for piece in _random_pieces(name, tensor.shape, tensor.dtype, random):
            room[done : done + piece.nbytes] = piece.view(np.uint8)
            done += piece.nbytes
        file.tensors[name] = replace(tensor, mapping=memory)
    return file


def _config(preset: str, layers: int | None, dialect: str, vocabulary: int | None) -> dict[str, Any]:
    """A preset's config.json, with as many layers and tokens as asked for."""
    if preset not in PRESETS:
        raise FormatError(f'[synth] unknown preset "{preset}"; known: {", ".join(PRESETS)}')
    if dialect not in DIALECTS:
        raise FormatError(f'[synth] unknown dialect "{dialect}"; known: {", ".join(DIALECTS)}')
    config = PRESETS[preset]
    if layers is not None:
        if layers < 1:
            raise FormatError(f"[synth] {layers} layers; give at least 1")
        config = config | {"num_hidden_layers": layers}
    return config if vocabulary is None else config | {"vocab_size": vocabulary}


def _stored_weights(
    config: dict[str, Any],
    metadata: dict[str, Any],
    dtype: str,
    rules: Iterable[tuple[str, str]],
    dialect: str,
) -> list[tuple[Weight, DType]]:
    """Every weight of the model with the type that it is stored in."""
    model, file_type, ruled = MODELS[config["model_type"]], file_types.get(dtype), _rule_finder(rules)
    weights = model.weights(RandomSource(config), dialect)
    is_tied = all(weight.name != "output.weight" for weight in weights)
    shape = ModelShape.of(metadata, model.ARCHITECTURE, is_tied)
    found = []
    for weight in weights:
        wanted = ruled(weight.name) or file_type.wanted(weight.name, weight.shape[-1], shape)
        found.append((weight, storage_type(weight.name, weight.shape, wanted)))
    return found


def _rule_finder(rules: Iterable[tuple[str, str]]) -> Callable[[str], DType | None]:
    """The dtype of the first rule whose regex is found in a name."""
    compiled = []
    for pattern, name in rules:
        try:
            compiled.append((re.compile(pattern), _weight_type(name)))
        except re.error as error:
            raise GraphError(f'[synth] "{pattern}" is not a regular expression: {error}; mend it') from error
    return lambda name: next((dtype for pattern, dtype in compiled if pattern.search(name)), None)


def _weight_type(name: str) -> DType:
    dtype = dtypes.get(name)
    if dtype.is_integer:
        raise GraphError(f'[synth] "{name}" cannot hold weights; choose a float or block-quantized dtype')
    return dtype


def _random_tensor(weight: Weight, dtype: DType, random: RandomWeights) -> TensorToWrite:
    def chunks() -> Iterable[Array]:
        return _random_pieces(weight.name, weight.shape, dtype, random)

    return TensorToWrite(weight.name, dtype, weight.shape, chunks)


def _random_pieces(name: str, shape: tuple[int, ...], dtype: DType, random: RandomWeights) -> Iterable[Array]:
    """A tensor's values, in pieces."""
    if name.endswith("_norm.weight"):
        return [random.vector(shape, 1.0, 0.05)]
    if len(shape) == 1:
        return [random.vector(shape, 0.0, 0.05)]
    return random.matrix(shape, dtype)


def dummy_vocabulary(size: int) -> dict[str, Any]:
    """A SentencePiece vocabulary of `size` tokens: special ones, all bytes, ASCII, then made-up words.

    Raises: FormatError if the size leaves no room for the bytes.
    """
    letters = [chr(code) for code in range(0x21, 0x7F)] + ["▁"]
    if size < len(SPECIAL_TOKENS) + 256 + len(letters):
        raise FormatError(
            f"[synth] a vocabulary of {size} tokens; at least {len(SPECIAL_TOKENS) + 256 + len(letters)} are needed"
        )
    tokens = [*SPECIAL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    kinds = [*SPECIAL_TOKENS.values(), *[TokenType.BYTE] * 256, *[TokenType.NORMAL] * len(letters)]
    words = made_up_words(size - len(tokens))
    kinds += [TokenType.NORMAL] * len(words)
    tokens += words
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": -np.arange(size, dtype=np.float32),
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }


def made_up_words(count: int) -> list[str]:
    """`count` different words of syllables, each with the space before it."""
    syllables = [first + second for first, second in product("bdfgklmnprstvz", "aeiou")]
    length = 1
    words: list[str] = []
    while len(words) < count:
        more = min(count - len(words), len(syllables) ** length)
        words += [_spell(number, length, syllables) for number in range(more)]
        length += 1
    return words


def _spell(number: int, length: int, syllables: list[str]) -> str:
    digits = [number // len(syllables) ** place % len(syllables) for place in range(length)]
    return "▁" + "".join(syllables[digit] for digit in digits)
