"""Read tokenizer.model, a SentencePiece model: the few fields that GGUF takes, straight from the protocol buffer.

Source: sentencepiece_model.proto, https://github.com/google/sentencepiece
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from graphrt.errors import FormatError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
# Field numbers of ModelProto, its SentencePiece, TrainerSpec and NormalizerSpec.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
PIECE_TEXT, PIECE_SCORE, PIECE_TYPE = 1, 2, 3
MODEL_TYPE, BPE = 3, 2
SPECIAL_IDS = {40: "unknown", 41: "bos", 42: "eos", 43: "padding"}
ADD_DUMMY_PREFIX = 3


@dataclass(frozen=True)
class SentencePieceModel:
    """The pieces by id (text, score, TokenType number), special ids by name, and whether a space is put first."""

    pieces: list[tuple[str, float, int]]
    special: dict[str, int]
    add_space_prefix: bool


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a SentencePiece BPE model.

    Raises: FormatError if the file is damaged, or is a unigram model, which GGUF's "llama" tokenizer is not.
    """
    try:
        return _read(path)
    except (IndexError, ValueError, struct.error) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"[{path.name}] is not a SentencePiece model ({error}); download it again") from error


def _read(path: Path) -> SentencePieceModel:
    pieces: list[tuple[str, float, int]] = []
    special = {"unknown": 0, "bos": 1, "eos": 2}
    model_type, add_space_prefix = 1, True
    for number, value in _fields(path.read_bytes()):
        if number == PIECES:
            piece = dict(_fields(_as_bytes(value)))
            score = struct.unpack("<f", _as_bytes(piece.get(PIECE_SCORE, bytes(4))))[0]
            pieces.append((_as_bytes(piece[PIECE_TEXT]).decode(), score, _as_int(piece.get(PIECE_TYPE, 1))))
        elif number == TRAINER:
            trainer = dict(_fields(_as_bytes(value)))
            model_type = _as_int(trainer.get(MODEL_TYPE, 1))
            special |= {name: _as_int(trainer[field]) for field, name in SPECIAL_IDS.items() if field in trainer}
        elif number == NORMALIZER:
            add_space_prefix = bool(dict(_fields(_as_bytes(value))).get(ADD_DUMMY_PREFIX, 1))
    if not pieces or model_type != BPE:
        raise FormatError(f"[{path.name}] is no BPE model (type {model_type}); only SentencePiece BPE can be converted")
    present = {name: index for name, index in special.items() if 0 <= index < len(pieces)}
    return SentencePieceModel(pieces, present, add_space_prefix)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protocol-buffer message: numbers as int, all else as bytes."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == VARINT:
            value, position = _varint(data, position)
            yield tag >> 3, value
            continue
        if kind == BYTES:
            length, position = _varint(data, position)
        else:
            length = {FIXED64: 8, FIXED32: 4}.get(kind, -1)
        if length < 0 or position + length > len(data):
            raise ValueError(f"field {tag >> 3} at byte {position} does not fit")
        yield tag >> 3, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            # Negative int32 fields (pad_id = -1) are written as 64-bit two's complement.
            return value - (1 << 64) if value >> 63 else value, position
        shift += 7
        if shift > 63:
            raise ValueError(f"a number at byte {position} is too long")


def _as_bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError(f"a number ({value}) where text was expected")
    return value


def _as_int(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("text where a number was expected")
    return value
