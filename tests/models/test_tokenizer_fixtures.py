"""Every string of llama.cpp's tokenizer fixtures must become the same ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphrt.models.tokenizer import Tokenizer

FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "data" / "tokenizers"
VOCABULARIES = ("ggml-vocab-deepseek-llm.gguf", "ggml-vocab-llama-spm.gguf")
SEPARATOR = "\n__ggml_vocab_test__\n"

pytestmark = pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"no tokenizer fixtures in {FIXTURES}")


def cases(name: str) -> list[tuple[str, list[int]]]:
    texts = (FIXTURES / f"{name}.inp").read_bytes().decode().removesuffix(SEPARATOR).split(SEPARATOR)
    lines = (FIXTURES / f"{name}.out").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return list(zip(texts, [[int(word) for word in line.split()] for line in lines], strict=True))


@pytest.mark.parametrize("name", VOCABULARIES)
def test_every_line_matches(name: str) -> None:
    tokenizer = Tokenizer.from_gguf(FIXTURES / name)
    wrong = [
        f"{text!r}: {found}, expected {expected}"
        for text, expected in cases(name)
        if (found := tokenizer.encode(text)) != expected
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", VOCABULARIES)
def test_decoding_gives_the_text_back(name: str) -> None:
    tokenizer = Tokenizer.from_gguf(FIXTURES / name)
    for text, ids in cases(name):
        assert tokenizer.decode(ids) == text
        stream = tokenizer.stream()
        streamed = "".join([stream.push(index) for index in ids] + [stream.flush()])
        space = " " if text and tokenizer.vocabulary.model == "llama" else ""  # the one that encoding put before it
        assert streamed == space + text
