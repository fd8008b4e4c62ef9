"""Text to token ids and back, by the vocabulary in a GGUF file.

Special tokens stand around the encoders of `graphrt.models.bpe` and `graphrt.models.spm`: control tokens (<s>,
<|user|>) and user-defined ones are found in the text first, the longest before the others, and are never cut.

Source: llama.cpp, llama-vocab.cpp.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from graphrt.errors import FormatError, GraphError
from graphrt.models.bpe import BytePairEncoder
from graphrt.models.gguf_file import GGUFFile
from graphrt.models.spm import SentencePieceEncoder
from graphrt.models.vocabulary import TokenType, Vocabulary

ENCODERS: dict[str, type[BytePairEncoder] | type[SentencePieceEncoder]] = {
    "gpt2": BytePairEncoder,
    "llama": SentencePieceEncoder,
}
SPECIAL = (TokenType.CONTROL, TokenType.UNKNOWN)


class Tokenizer:
    """Encodes and decodes text; make one with `Tokenizer.from_gguf` or `Tokenizer.from_metadata`.

    Attributes:
        vocabulary: tokens, types, and the ids of special tokens (bos, eos, eot, end_of_generation).
        add_bos, add_eos: whether `encode(..., add_special=True)` adds them.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        encoder = ENCODERS.get(vocabulary.model)
        if encoder is None:
            raise FormatError(
                f'[{vocabulary.source}] unknown tokenizer "{vocabulary.model}" (tokenizer.ggml.model); '
                f"known: {', '.join(ENCODERS)}"
            )
        self.vocabulary = vocabulary
        self._encoder = encoder(vocabulary)
        self.add_bos = self._encoder.adds_bos if vocabulary.add_bos is None else vocabulary.add_bos
        self.add_eos = bool(vocabulary.add_eos)
        self._special = frozenset(vocabulary.ids_of(*SPECIAL))
        whole = vocabulary.ids_of(*SPECIAL, TokenType.USER_DEFINED)
        self._whole = sorted(whole, key=lambda index: -len(vocabulary.tokens[index].encode()))

    @classmethod
    def from_gguf(cls, path: str | Path) -> Tokenizer:
        """The tokenizer of a GGUF file, which may hold nothing but a vocabulary.

        Raises: FormatError if the file is damaged or its vocabulary is of a kind that graphrt does not know.
        """
        file = GGUFFile.open(path)
        return cls.from_metadata(file.metadata, file.path.name)

    @classmethod
    def from_metadata(cls, metadata: dict[str, Any], source: str) -> Tokenizer:
        """The tokenizer described by GGUF metadata; `source` names it in messages."""
        return cls(Vocabulary.from_metadata(metadata, source))

    def __len__(self) -> int:
        return len(self.vocabulary.tokens)

    def encode(self, text: str, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """The token ids of a text.

        Args:
            text: any string.
            add_special: put BOS before and EOS after, where the vocabulary asks for them.
            parse_special: read "<s>" in the text as the control token, not as three characters.
        Raises: GraphError if the string holds half a surrogate pair, which no UTF-8 can spell.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise GraphError(
                f"[tokenizer] character {error.start} is {text[error.start]!r}, {error.reason}; remove it"
            ) from error
        ids: list[int] = []
        first = True
        for piece in self._partition(text, parse_special):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids += self._encoder.encode(piece, first)
            first = isinstance(piece, int)
        if add_special and self.add_bos and self.vocabulary.bos is not None:
            ids.insert(0, self.vocabulary.bos)
        if add_special and self.add_eos and self.vocabulary.eos is not None:
            ids.append(self.vocabulary.eos)
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of token ids, without the space that `encode` puts before it; invalid UTF-8 becomes U+FFFD.

        Raises: GraphError if an id is outside the vocabulary.
        """
        text = b"".join(self.token_bytes(index, skip_special) for index in ids).decode("utf-8", "replace")
        return text[1:] if self._encoder.adds_space and text.startswith(" ") else text

    def token_bytes(self, index: int, skip_special: bool = True) -> bytes:
        """The bytes that one token writes: none for a control token, unless `skip_special` is off.

        Raises: GraphError if the id is outside the vocabulary.
        """
        if not 0 <= index < len(self):
            raise GraphError(
                f"[tokenizer] token id {index} is outside the vocabulary of {len(self)}; give 0 to {len(self) - 1}"
            )
        token = self.vocabulary.tokens[index]
        kind = self.vocabulary.types[index]
        if kind is TokenType.UNUSED or (kind in SPECIAL and skip_special):
            return b""
        if kind is TokenType.USER_DEFINED or kind in SPECIAL:
            return token.encode()
        return self._encoder.token_bytes(token)

    def stream(self, skip_special: bool = True) -> TextStream:
        """A decoder for ids that come one by one."""
        return TextStream(self, skip_special)

    def _partition(self, text: str, parse_special: bool) -> list[str | int]:
        """Cut a text at its special tokens: strings between ids."""
        pieces: list[str | int] = [text] if text else []
        for index in self._whole:
            token = self.vocabulary.tokens[index]
            if not token or token not in text or (index in self._special and not parse_special):
                continue
            pieces = [part for piece in pieces for part in _cut(piece, token, index)]
        return pieces


class TextStream:
    """Decodes ids one by one; bytes of a character that is not complete yet are held back."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, index: int) -> str:
        """The text that this token completes, perhaps none."""
        return self._decoder.decode(self._tokenizer.token_bytes(index, self._skip_special))

    def flush(self) -> str:
        """What is still held back, at the end of a text."""
        return self._decoder.decode(b"", final=True)


def _cut(piece: str | int, token: str, index: int) -> Iterable[str | int]:
    """The parts of one piece around every occurrence of a special token."""
    if isinstance(piece, int):
        return [piece]
    parts: list[str | int] = []
    for position, part in enumerate(piece.split(token)):
        if position:
            parts.append(index)
        if part:
            parts.append(part)
    return parts
