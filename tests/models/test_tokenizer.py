"""Tokenizers: special tokens, streams, odd vocabularies, and SentencePiece's rule by brute force."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from graphrt.errors import FormatError, GraphError
from graphrt.models.bpe import byte_alphabet, words_of
from graphrt.models.pretokenizers import PRETOKENIZERS
from graphrt.models.synth import dummy_vocabulary
from graphrt.models.tokenizer import Tokenizer
from graphrt.models.vocabulary import TokenType

LETTERS = {value[0]: letter for letter, value in byte_alphabet().items()}


def spelled(text: str) -> str:
    """A text in the alphabet of byte-level tokens."""
    return "".join(LETTERS[byte] for byte in text.encode())


def byte_level(pre: str = "gpt-2", merges: tuple[str, ...] = (), **changes: Any) -> Tokenizer:
    """A BPE tokenizer of all bytes, some merges, and special tokens."""
    special = {"<s>": TokenType.CONTROL, "</s>": TokenType.CONTROL, "<tool>": TokenType.USER_DEFINED}
    tokens = [*LETTERS.values(), *(merge.replace(" ", "") for merge in merges), *special]
    types = [TokenType.NORMAL] * (len(tokens) - len(special)) + list(special.values())
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.merges": list(merges),
        "tokenizer.ggml.bos_token_id": len(tokens) - 3,
        "tokenizer.ggml.eos_token_id": len(tokens) - 2,
    }
    return Tokenizer.from_metadata(
        metadata | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}, "test"
    )


def sentencepiece(**changes: Any) -> Tokenizer:
    return Tokenizer.from_metadata(
        dummy_vocabulary(1024) | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}, "test"
    )


def scored(pieces: dict[str, float], **changes: Any) -> Tokenizer:
    """A SentencePiece tokenizer of bytes and these pieces."""
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    types = [TokenType.UNKNOWN, *[TokenType.BYTE] * 256, *[TokenType.NORMAL] * len(pieces)]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array([0.0] * 257 + list(pieces.values()), np.float32),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
    }
    return Tokenizer.from_metadata(
        metadata | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}, "test"
    )


TEXTS = [
    "",
    " ",
    "Hello",
    " two  spaces ",
    "ünïcödé 你好 🚀",
    "line\nline\r\n\n",
    "a\u0301 ﬁ ½ 123456",
    "\x00\x7f",
    "'s 'LL x_y",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("pre", [*dict.fromkeys(PRETOKENIZERS), "spm"])
def test_decoding_undoes_encoding(pre: str, text: str) -> None:
    tokenizer = sentencepiece() if pre == "spm" else byte_level(pre, ("l l", "Ġ a", "1 2"))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    stream = tokenizer.stream()
    streamed = "".join([*(stream.push(index) for index in ids), stream.flush()])
    assert streamed == (" " if pre == "spm" and text else "") + text


def test_merges_are_taken_best_first() -> None:
    tokenizer = byte_level(merges=("l o", "l l", "h e", "he ll", "lo w"))
    assert [tokenizer.vocabulary.tokens[index] for index in tokenizer.encode("hello low")] == [
        *("he", "l", "lo"),
        *("Ġ", "low"),
    ]


def test_llama3_keeps_words_that_are_tokens_whole() -> None:
    merges = ("a b", "b c", "a bc")
    assert len(byte_level("llama-bpe", merges).encode("abc")) == 1
    assert len(byte_level("smaug-bpe", merges).encode("abc")) == 2


def test_special_tokens_are_found_whole() -> None:
    for tokenizer in (byte_level(), sentencepiece()):
        bos, eos = tokenizer.vocabulary.bos, tokenizer.vocabulary.eos
        ids = tokenizer.encode("<s>a</s></s>b")
        assert [index for index in ids if index in (bos, eos)] == [bos, eos, eos]
        assert tokenizer.decode(ids).replace(" ", "") == "ab"
        assert "</s></s>" in tokenizer.decode(ids, skip_special=False)
        plain = tokenizer.encode("<s>a</s>", parse_special=False)
        assert bos not in plain
        assert tokenizer.decode(plain) == "<s>a</s>"


def test_user_defined_tokens_are_always_whole_and_always_text() -> None:
    tokenizer = byte_level()
    tool = len(tokenizer) - 1
    for parse_special in (True, False):
        assert tokenizer.encode("a<tool>", parse_special=parse_special)[1:] == [tool]
    assert tokenizer.decode([tool]) == "<tool>"


def test_the_longest_special_token_wins() -> None:
    tokens = ["<unk>", "<|a|>", "<|a|><|b|>", "<|b|>", "x"]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([2, 3, 3, 3, 1], np.int32),
        "tokenizer.ggml.add_space_prefix": False,
    }
    tokenizer = Tokenizer.from_metadata(metadata, "test")
    assert tokenizer.encode("<|a|><|b|>x<|b|><|a|>") == [2, 4, 3, 1]


def test_a_space_is_put_first_and_after_special_tokens() -> None:
    tokenizer = scored({"▁a": -1.0, "a": -2.0, "▁": -3.0})
    a, prefixed = tokenizer.vocabulary.tokens.index("a"), tokenizer.vocabulary.tokens.index("▁a")
    assert tokenizer.encode("aa") == [prefixed, a]
    assert tokenizer.encode("<unk>a") == [0, prefixed]
    without = scored({"▁a": -1.0, "a": -2.0, "▁": -3.0}, add_space_prefix=False)
    assert without.encode("aa") == [a, a]
    assert without.decode(without.encode(" a")) == " a"


@pytest.mark.parametrize(("add_bos", "add_eos"), [(True, True), (True, False), (False, True), (False, False)])
def test_special_tokens_are_added_as_the_file_says(add_bos: bool, add_eos: bool) -> None:
    tokenizer = byte_level(add_bos_token=add_bos, add_eos_token=add_eos)
    bos, eos, [a] = tokenizer.vocabulary.bos, tokenizer.vocabulary.eos, tokenizer.encode("a")
    assert tokenizer.encode("a", add_special=True) == [bos] * add_bos + [a] + [eos] * add_eos


def test_a_silent_file_has_its_kind_s_default() -> None:
    assert byte_level("llama-bpe").add_bos
    assert not byte_level("gpt-2").add_bos
    assert scored({"a": 0.0}).add_bos


def test_ends_of_generation_are_known_by_id_and_by_spelling() -> None:
    tokenizer = scored({"<|im_end|>": 0.0, "stop": 0.0, "other": 0.0}, eot_token_id=258)
    assert tokenizer.vocabulary.end_of_generation == {257, 258}


def test_streams_hold_back_half_characters() -> None:
    tokenizer = byte_level()
    stream = tokenizer.stream()
    pieces = [stream.push(index) for index in tokenizer.encode("né🚀")]
    assert pieces == ["n", "", "é", "", "", "", "🚀"]
    assert stream.push(tokenizer.encode("🚀")[0]) == ""
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


@pytest.mark.parametrize("index", [-1, 1024, 1 << 40])
def test_ids_outside_the_vocabulary_are_refused(index: int) -> None:
    with pytest.raises(GraphError, match=rf"token id {index} is outside the vocabulary of 1024"):
        sentencepiece().decode([index])


def brute_force(text: str, scores: dict[str, float]) -> list[str]:
    """Join the best-scoring neighbours, the leftmost of equals, until none joins: the rule, word for word."""
    pieces = list(text)
    while True:
        joins = [(-scores[a + b], at) for at, (a, b) in enumerate(pairwise(pieces)) if a + b in scores]
        if not joins:
            return pieces
        at = min(joins)[1]
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]


@pytest.mark.parametrize("crossing", [False, True])
def test_sentencepiece_follows_its_rule(crossing: bool) -> None:
    """Against the rule by brute force, with many ties of scores, and with tokens that cross a space or none."""
    draw = random.Random(7)
    for _ in range(150):
        letters = "ab▁" if crossing else "abc"
        pieces = {letter: draw.choice([-3.0, -2.0]) for letter in "abc▁"}
        for _ in range(14):
            word = "".join(draw.choices(letters, k=draw.randint(2, 4)))
            pieces[word if crossing else draw.choice(["", "▁"]) + word] = float(-draw.randint(0, 4))
        tokenizer = scored(pieces, add_space_prefix=False)
        text = "".join(draw.choices("abc ", k=40))
        expected = brute_force(text.replace(" ", "▁"), pieces)
        assert [tokenizer.vocabulary.tokens[index] for index in tokenizer.encode(text)] == expected


def test_a_long_run_of_one_letter_is_joined_in_good_time() -> None:
    """No spaces to cut at, and every join possible: a rule applied naively would take minutes."""
    tokenizer = scored({"▁": 0.0} | {"a" * 2**power: float(power) for power in range(12)})
    assert tokenizer.decode(tokenizer.encode("a" * 200_000)) == "a" * 200_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "bert"}, 'unknown tokenizer "bert"'),
        ({"tokens": []}, "no vocabulary"),
        ({"tokens": np.arange(3)}, '"tokenizer.ggml.tokens" is not an array of strings'),
        ({"pre": "klingon"}, 'unknown pre-tokenizer "klingon"'),
        ({"pre": 3}, '"tokenizer.ggml.pre" is 3, not str'),
        ({"merges": ["a bc"]}, "merge 0 'a bc' does not join two tokens into a third"),
        ({"merges": ["ab"]}, "merge 0 'ab' does not join"),
        ({"token_type": np.zeros(3, np.int32)}, '"tokenizer.ggml.token_type" holds 3 numbers for 259 tokens'),
        ({"bos_token_id": 259}, '"tokenizer.ggml.bos_token_id" is 259, the vocabulary has 259 tokens'),
        ({"add_bos_token": 1}, '"tokenizer.ggml.add_bos_token" is 1, not bool'),
    ],
)
def test_what_cannot_be_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=rf"^\[test\] .*{message}"):
        byte_level(**changes)


def test_a_vocabulary_without_types_still_falls_back_to_bytes() -> None:
    tokens = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a"]
    metadata = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens}
    tokenizer = Tokenizer.from_metadata(metadata, "test")
    assert tokenizer.decode(tokenizer.encode("aé🚀</s>")) == "aé🚀"
    assert tokenizer.encode("a</s>")[-1] == 1


def test_unused_tokens_write_nothing() -> None:
    tokens = ["a", "[PAD1]"]
    metadata = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens}
    types = {"tokenizer.ggml.token_type": np.array([1, 5], np.int32)}
    assert Tokenizer.from_metadata(metadata | types, "test").decode([0, 1, 0]) == "aa"


@pytest.mark.parametrize("tokenizer", [byte_level(), sentencepiece()], ids=["bpe", "spm"])
def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(GraphError, match=r"character 2 is '\\ud800', surrogates not allowed; remove it"):
        tokenizer.encode("ab\ud800")


def test_pretokenizers_differ_where_their_models_do() -> None:
    cuts = {
        name: words_of(PRETOKENIZERS[name], "1234567 it's") for name in ("gpt-2", "llama-bpe", "qwen2", "deepseek-v3")
    }
    assert cuts["gpt-2"] == ["1234567", "Ġit", "'s"]
    assert cuts["llama-bpe"] == ["123", "456", "7", "Ġit", "'s"]
    assert cuts["qwen2"] == [*"1234567", "Ġit", "'s"]
    assert cuts["deepseek-v3"] == ["123", "456", "7", "Ġit", "'s"]
    assert words_of(PRETOKENIZERS["deepseek-v3"], "x 你好 y") == ["x", "Ġ", spelled("你好"), "Ġy"]
