"""Token ids beside llama.cpp's, for every pre-tokenizer and SentencePiece; random models of every type load there."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from graphrt import dtypes
from graphrt.models.convert.checkpoint import Checkpoint
from graphrt.models.convert.vocabulary import PROBE, vocabulary_metadata
from graphrt.models.gguf_write import save
from graphrt.models.pretokenizers import PRETOKENIZERS
from graphrt.models.synth import synthesise
from graphrt.models.tokenizer import Tokenizer

llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: make test-peers")
pytestmark = pytest.mark.peers

FIXTURES = Path(__file__).parents[1] / "fixtures"
LETTERS = (
    "abcXYZ 012 \n\r\t'’.,!?-_=+/*()[]{}<>@#$%^&~`|\\\"éüßñøÅΑβγДжзי שםعربيहि"
    "你好世界こんカナ한국ไทย🚀🦙😶½²Ⅷ℃　。，、・ｱＡ１ǅʰ\u0301\u200d\u00a0\u2028\u0085ﬁ"
)


def texts() -> list[str]:
    draw = random.Random(3)
    drawn = ["".join(draw.choices(LETTERS, k=draw.randint(1, 40))) for _ in range(200)]
    return ["", " ", "<s>hi</s> there</s>\n<unk>x  y", PROBE, *drawn]


@pytest.mark.parametrize("name", [*PRETOKENIZERS, "sentencepiece"])
def test_ids_are_the_same(tmp_path: Path, name: str) -> None:
    folder = "mixtral" if name == "sentencepiece" else "llama"
    metadata, _ = vocabulary_metadata(Checkpoint(FIXTURES / folder))
    if name != "sentencepiece":
        metadata["tokenizer.ggml.pre"] = name
    path = tmp_path / "vocabulary.gguf"
    save(path, "llama", {"llama.vocab_size": len(metadata["tokenizer.ggml.tokens"]), **metadata}, [])
    ours = Tokenizer.from_gguf(path)
    theirs = llama_cpp.Llama(str(path), vocab_only=True, verbose=False, n_threads=1)
    for special in (False, True):
        for text in texts():
            expected = theirs.tokenize(text.encode(), add_bos=False, special=special)
            assert ours.encode(text, parse_special=special) == expected, text
    theirs.close()


@pytest.mark.parametrize("dtype", [*dtypes.FLOATS, *dtypes.QUANTIZED], ids=str)
def test_random_models_load(tmp_path: Path, dtype: dtypes.DType) -> None:
    path = synthesise("tiny-deepseek-v3", tmp_path / "x.gguf", layers=2, dtype=dtype.name)
    model = llama_cpp.Llama(str(path), n_ctx=256, n_threads=1, verbose=False)
    model.eval(list(range(5, 12)))
    assert len(model.tokenize(b"To be")) > 1
    model.close()
