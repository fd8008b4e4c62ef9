"""SentencePiece's BPE: join the neighbouring pieces whose joined token scores best, until none joins.

The `tokenizers` package can only rank pairs, not scores: where two pairs make tokens of equal score, or one token in
two ways, it cannot follow the rule "the leftmost first". So the rule is written out here; words are remembered, so that
a long text costs little more than its distinct words.
"""

from __future__ import annotations

import re
from functools import lru_cache
from heapq import heapify, heappop, heappush

from graphrt.models.vocabulary import Vocabulary

SPACE = "▁"
REMEMBERED_WORDS = 1 << 16
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


class SentencePieceEncoder:
    """Encodes text by the scores of a SentencePiece vocabulary; unknown characters become byte tokens."""

    adds_bos = True

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._scores = dict(zip(vocabulary.tokens, vocabulary.scores, strict=True))
        self._ids = {token: index for index, token in enumerate(vocabulary.tokens)}
        self._unknown = vocabulary.unknown
        self._byte_ids = {byte: self._ids.get(f"<0x{byte:02X}>", self._unknown) for byte in range(256)}
        self.adds_space = vocabulary.add_space_prefix is not False
        # Where no token continues past a space, a text may be cut before each space: no merge can cross it.
        crosses = re.compile(f"[^{SPACE}]{SPACE}")
        self._words = re.compile(f"{SPACE}*[^{SPACE}]*")
        self._cuts_words = not any(crosses.search(token) for token in vocabulary.tokens)
        self._encode_word = lru_cache(REMEMBERED_WORDS)(self._merge)

    def encode(self, text: str, first: bool) -> list[int]:
        """The ids of a text without special tokens; a space is put before it if it is `first`."""
        text = text.replace(" ", SPACE)
        if first and self.adds_space:
            text = SPACE + text
        if not self._cuts_words:
            return list(self._merge(text))
        return [index for word in self._words.findall(text) for index in self._encode_word(word)]

    def token_bytes(self, token: str) -> bytes:
        """The bytes that a token writes."""
        byte = _BYTE_TOKEN.fullmatch(token)
        if byte:
            return bytes([int(byte[1], 16)])
        return token.replace(SPACE, " ").encode()

    def _merge(self, text: str) -> tuple[int, ...]:
        """Join the best-scoring neighbours of a text's characters; the leftmost of equals first."""
        pieces = list(text)
        following = list(range(1, len(pieces) + 1))
        preceding = list(range(-1, len(pieces) - 1))
        scores = self._scores
        candidates = [
            (-scores[joined], left, joined)
            for left in range(len(pieces) - 1)
            if (joined := pieces[left] + pieces[left + 1]) in scores
        ]
        heapify(candidates)
        end = len(pieces)
        while candidates:
            _, left, joined = heappop(candidates)
            right = following[left]
            if right == end or not pieces[left] or pieces[left] + pieces[right] != joined:
                continue
            pieces[left], pieces[right] = joined, ""
            after = following[left] = following[right]
            if after != end:
                preceding[after] = left
                if (wider := joined + pieces[after]) in scores:
                    heappush(candidates, (-scores[wider], left, wider))
            if (before := preceding[left]) >= 0 and (wider := pieces[before] + joined) in scores:
                heappush(candidates, (-scores[wider], before, wider))
        return tuple(index for piece in pieces if piece for index in self._piece_ids(piece))

    def _piece_ids(self, piece: str) -> list[int]:
        """The id of a piece, or those of its bytes if it is no token."""
        index = self._ids.get(piece)
        if index is not None:
            return [index]
        found = [self._byte_ids[byte] for byte in piece.encode()]
        return [index for index in found if index is not None]
