"""Byte-level byte-pair encoding, through the `tokenizers` package.

Tokens are spelled in a printable alphabet of 256 letters, one for each byte ("Ġ" for a space).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from graphrt.errors import FormatError
from graphrt.models.pretokenizers import PRETOKENIZERS, PreTokenizer
from graphrt.models.vocabulary import Vocabulary

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import Sequence as PreTokenizers


class BytePairEncoder:
    """Encodes text by the merges of a byte-level BPE vocabulary."""

    adds_space = False

    def __init__(self, vocabulary: Vocabulary) -> None:
        from tokenizers import Tokenizer, models

        known = PRETOKENIZERS.get(vocabulary.pre)
        if known is None:
            raise FormatError(
                f'[{vocabulary.source}] unknown pre-tokenizer "{vocabulary.pre}" (tokenizer.ggml.pre); '
                f"known: {', '.join(PRETOKENIZERS)}"
            )
        ids = {token: index for index, token in enumerate(vocabulary.tokens)}
        bpe = models.BPE(ids, _pairs(vocabulary, ids), ignore_merges=known.ignore_merges)
        self._tokenizer = Tokenizer(bpe)
        self._tokenizer.pre_tokenizer = cutter(known)
        self.adds_bos = known.add_bos
        self._byte_of = byte_alphabet()

    def encode(self, text: str, first: bool) -> list[int]:
        """The ids of a text without special tokens; `first` is of no importance to BPE."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def token_bytes(self, token: str) -> bytes:
        """The bytes that a token spells; letters outside the alphabet stand for themselves."""
        letters = self._byte_of
        return b"".join(letters.get(letter) or letter.encode() for letter in token)


def words_of(pretokenizer: PreTokenizer, text: str) -> list[str]:
    """The words that a pre-tokenizer cuts a text into, spelled in the byte alphabet."""
    return [word for word, _ in cutter(pretokenizer).pre_tokenize_str(text)]


def cutter(pretokenizer: PreTokenizer) -> PreTokenizers:
    """A pre-tokenizer as the `tokenizers` package takes it."""
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pretokenizer.patterns]
        + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


@cache
def byte_alphabet() -> dict[str, bytes]:
    """The byte that each letter of the byte-level alphabet stands for: printable ones stay, others begin at U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): bytes([byte]) for byte in printable}
    return letters | {chr(0x100 + index): bytes([byte]) for index, byte in enumerate(others)}


def _pairs(vocabulary: Vocabulary, ids: dict[str, int]) -> list[tuple[str, str]]:
    """The merges as pairs, cut at the first space that is not itself the left part."""
    pairs: list[tuple[str, str]] = []
    for merge in vocabulary.merges:
        at = merge.find(" ", 1)
        left, right = merge[:at], merge[at + 1 :]
        if at < 0 or left not in ids or right not in ids or left + right not in ids:
            raise FormatError(
                f"[{vocabulary.source}] merge {len(pairs)} {merge!r} does not join two tokens into a third; "
                f"convert the model again"
            )
        pairs.append((left, right))
    return pairs
