"""Tokenizers of Hugging Face folders: after conversion they must cut text as before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graphrt.errors import FormatError
from graphrt.models.convert.checkpoint import Checkpoint
from graphrt.models.convert.sentencepiece import read_sentencepiece
from graphrt.models.convert.vocabulary import vocabulary_metadata
from graphrt.models.pretokenizers import PRETOKENIZERS
from graphrt.models.tokenizer import Tokenizer
from graphrt.models.vocabulary import TokenType

FIXTURES = Path(__file__).parents[1] / "fixtures"
BPE = ("llama", "deepseek2", "deepseek3")
TEXTS = [
    "Shall I compare thee to a summer's day?\nThou art more lovely and more temperate:\n",
    "  And every   fair from fair sometime declines,\n\n\n1234567 890.",
    "naïve 你好 🚀 'LL x_y <s> ½",
    "",
    " ",
]


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a fixture's configuration and tokenizer, with no weights to speak of."""

    def copy(name: str) -> Path:
        path = tmp_path / name
        path.mkdir()
        for source in FIXTURES.joinpath(name).glob("*token*"):
            shutil.copy(source, path)
        shutil.copy(FIXTURES / name / "config.json", path)
        path.joinpath("model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
        return path

    return copy


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit a JSON file."""
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def converted(path: Path) -> Tokenizer:
    metadata, notes = vocabulary_metadata(Checkpoint(path))
    assert not notes
    return Tokenizer.from_metadata({key: value for key, value in metadata.items() if value is not None}, path.name)


@pytest.mark.parametrize("name", BPE)
def test_byte_level_tokenizers_cut_as_before(folder: Callable[[str], Path], name: str) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="reads tokenizer.json")
    path = folder(name)
    before, after = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json")), converted(path)
    for text in TEXTS:
        assert after.encode(text) == before.encode(text, add_special_tokens=False).ids
    assert after.vocabulary.pre == {"deepseek2": "deepseek-llm", "deepseek3": "deepseek-v3"}.get(name, "smaug-bpe")


def test_sentencepiece_models_cut_as_before(folder: Callable[[str], Path]) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="the judge of tokenizer.model")
    path = folder("mixtral")
    before = sentencepiece.SentencePieceProcessor(model_file=str(path / "tokenizer.model"))
    after = converted(path)
    for text in filter(str.strip, TEXTS):
        # sentencepiece itself does not look for special tokens in a text.
        assert after.encode(text, parse_special=False) == before.encode(text), text
    assert len(after) == json.loads((path / "config.json").read_text())["vocab_size"]
    assert (after.vocabulary.bos, after.vocabulary.eos, after.vocabulary.unknown) == (1, 2, 0)
    assert after.add_bos
    assert after.vocabulary.types[:4] == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE]


def test_sentencepiece_models_are_read_as_the_package_reads_them(folder: Callable[[str], Path]) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="the judge of tokenizer.model")
    path = folder("mixtral") / "tokenizer.model"
    judge = sentencepiece.SentencePieceProcessor(model_file=str(path))
    pieces = read_sentencepiece(path).pieces
    assert [(text, score) for text, score, _ in pieces] == [
        (judge.id_to_piece(index), judge.get_score(index)) for index in range(judge.get_piece_size())
    ]
    assert [kind == TokenType.BYTE for _, _, kind in pieces] == [judge.is_byte(index) for index in range(len(pieces))]


def test_a_sentencepiece_vocabulary_may_come_as_tokenizer_json(folder: Callable[[str], Path]) -> None:
    """As transformers writes Llama's: every split of every piece is a merge, ranked by the piece's score."""
    path = folder("mixtral")
    before = converted(path)
    pieces = read_sentencepiece(path / "tokenizer.model").pieces
    vocabulary = {text: index for index, (text, _, _) in enumerate(pieces)}
    merges = [
        (-score, [text[:cut], text[cut:]])
        for text, score, kind in pieces
        for cut in range(1, len(text))
        if kind == TokenType.NORMAL and text[:cut] in vocabulary and text[cut:] in vocabulary
    ]
    ranked = [merge for _, merge in sorted(merges, key=lambda item: item[0])]
    added = [{"id": index, "content": text, "special": True} for text, index in vocabulary.items() if index < 3]
    model = {"type": "BPE", "vocab": vocabulary, "merges": ranked, "byte_fallback": True, "unk_token": "<unk>"}
    (path / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": added}))
    (path / "tokenizer.model").unlink()
    after = converted(path)
    assert after.vocabulary.model == "llama"
    assert after.vocabulary.types == before.vocabulary.types
    for text in TEXTS:
        assert after.encode(text) == before.encode(text)


def test_merges_come_as_pairs_or_as_strings(folder: Callable[[str], Path]) -> None:
    path = folder("llama")
    before = converted(path).vocabulary.merges

    def turn(data: dict[str, Any]) -> None:
        merges = data["model"]["merges"]
        data["model"]["merges"] = [" ".join(m) if isinstance(m, list) else m.split(" ") for m in merges]

    change(path / "tokenizer.json", turn)
    assert converted(path).vocabulary.merges == before


def test_rows_without_a_token_get_one_that_is_never_used(folder: Callable[[str], Path]) -> None:
    path = folder("llama")
    size = len(converted(path))
    change(path / "config.json", lambda data: data.update(vocab_size=size + 2))
    vocabulary = converted(path).vocabulary
    assert vocabulary.tokens[size:] == [f"[PAD{size}]", f"[PAD{size + 1}]"]
    assert vocabulary.types[size:] == [TokenType.UNUSED] * 2


def test_special_tokens_and_flags_come_from_the_settings(folder: Callable[[str], Path]) -> None:
    path = folder("llama")
    tokens = converted(path).vocabulary.tokens
    settings = {
        "bos_token": {"content": tokens[1]},
        "eos_token": tokens[0],
        "add_bos_token": False,
        "add_eos_token": True,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    found = converted(path)
    assert (found.vocabulary.bos, found.vocabulary.eos) == (1, 0)
    assert (found.add_bos, found.add_eos) == (False, True)
    (path / "tokenizer_config.json").unlink()
    change(path / "config.json", lambda data: data.update(bos_token_id=0, eos_token_id=[1, 0]))
    assert (converted(path).vocabulary.bos, converted(path).vocabulary.eos) == (0, 1)


def test_a_post_processor_says_whether_bos_is_added(folder: Callable[[str], Path]) -> None:
    path = folder("deepseek2")
    change(path / "tokenizer_config.json", lambda data: data.pop("add_bos_token", None))
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]}
    for processor, adds_bos in (
        (template, True),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]}, True),
        ({"type": "ByteLevel"}, False),
        (None, False),
    ):
        change(path / "tokenizer.json", lambda data, value=processor: data.update(post_processor=value))
        assert converted(path).add_bos is adds_bos


def test_chat_templates_are_found_where_they_may_be(folder: Callable[[str], Path]) -> None:
    path = folder("llama")
    for template in ("one", [{"name": "tool", "template": "no"}, {"name": "default", "template": "one"}]):
        change(path / "tokenizer_config.json", lambda data, value=template: data.update(chat_template=value))
        assert converted(path).vocabulary.chat_template == "one"
    (path / "chat_template.jinja").write_text("two")
    assert converted(path).vocabulary.chat_template == "two"


def test_added_tokens_of_a_sentencepiece_folder_are_kept(folder: Callable[[str], Path]) -> None:
    path = folder("mixtral")
    size = len(converted(path))
    added = {
        str(size): {"content": "<|user|>", "special": True},
        str(size + 1): {"content": "<tool>", "special": False},
    }
    change(path / "tokenizer_config.json", lambda data: data.update(added_tokens_decoder=added))
    change(path / "config.json", lambda data: data.update(vocab_size=size + 2))
    found = converted(path)
    assert found.encode("<|user|>x<tool>")[0] == size
    assert found.encode("<|user|>x<tool>")[-1] == size + 1
    assert found.decode([size, size + 1]) == "<tool>"
    (path / "added_tokens.json").write_text(json.dumps({"▁▁▁": size + 2, "<|user|>": size}))
    change(path / "config.json", lambda data: data.update(vocab_size=size + 3))
    found = converted(path)
    assert found.encode("<|user|>x   y").count(size + 2) == 1
    assert found.vocabulary.types[size] is TokenType.CONTROL


def test_a_folder_without_a_tokenizer_is_said_to_have_none(folder: Callable[[str], Path]) -> None:
    path = folder("llama")
    (path / "tokenizer.json").unlink()
    metadata, notes = vocabulary_metadata(Checkpoint(path))
    assert metadata == {"tokenizer.ggml.model": "no_vocab"}
    assert notes == ["no tokenizer.json or tokenizer.model: no vocabulary written"]


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def byte_level(use_regex: bool = False) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def digits(apart: bool = True) -> dict[str, Any]:
    return {"type": "Digits", "individual_digits": apart}


CASELESS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
DEEPSEEK_V3_TAIL = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
# Pre-tokenizers as models' own tokenizer.json have them.
PUBLISHED: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [byte_level(use_regex=True)],
    "starcoder": [digits(), byte_level(use_regex=True)],
    "smaug-bpe": [split(rf"{CASELESS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{TAIL}"), byte_level()],
    "qwen2": [split(rf"{CASELESS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{TAIL}"), byte_level()],
    "deepseek-v3": [split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"), split(DEEPSEEK_V3_TAIL), byte_level()],
    "deepseek-llm": [*map(split, PRETOKENIZERS["deepseek-llm"].patterns[:-1]), digits(), byte_level()],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_pretokenizers_are_recognised(folder: Callable[[str], Path], name: str) -> None:
    path = folder("deepseek2")
    steps = {"type": "Sequence", "pretokenizers": PUBLISHED[name]}
    change(path / "tokenizer.json", lambda data: data.update(pre_tokenizer=steps))
    assert converted(path).vocabulary.pre == name


def test_llama3_is_known_by_its_whole_words(folder: Callable[[str], Path]) -> None:
    path = folder("deepseek2")
    steps = {"type": "Sequence", "pretokenizers": PUBLISHED["smaug-bpe"]}
    change(path / "tokenizer.json", lambda data: data.update(pre_tokenizer=steps))
    change(path / "tokenizer.json", lambda data: data["model"].update(ignore_merges=True))
    assert converted(path).vocabulary.pre == "llama-bpe"


def set_model(**changes: Any) -> Callable[[Path], None]:
    return lambda path: change(path / "tokenizer.json", lambda data: data["model"].update(changes))


def set_tokenizer(**changes: Any) -> Callable[[Path], None]:
    return lambda path: change(path / "tokenizer.json", lambda data: data.update(changes))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "kind": (set_model(type="Unigram"), "a Unigram tokenizer cannot be converted"),
    "no size": (lambda path: change(path / "config.json", lambda data: data.pop("vocab_size")), '"vocab_size" must be'),
    "template": (lambda path: (path / "chat_template.jinja").write_bytes(b"\xff"), "files are damaged"),
    "no merges": (set_model(merges=7), "files are damaged"),
    "vocabulary": (set_model(vocab=[1, 2]), "files are damaged"),
    "added": (set_tokenizer(added_tokens=[{"content": "x"}]), "files are damaged"),
    "cutter": (set_tokenizer(pre_tokenizer={"type": "Whitespace"}), "its pre-tokenizer is none of default, gpt-2"),
    "no cutter": (set_tokenizer(pre_tokenizer=None), "has no pre_tokenizer"),
    "cutter unknown": (set_tokenizer(pre_tokenizer={"type": "Martian"}), "cannot be read: data did not match"),
    "too large": (
        lambda path: change(path / "config.json", lambda data: data.update(vocab_size=9)),
        "vocab_size in config",
    ),
    "no JSON": (lambda path: (path / "tokenizer.json").write_text("{"), "is not valid JSON"),
    "spm": (
        lambda path: (path / "tokenizer.model").write_bytes(b"\x0a\xff\xff\xff\xff\x7f"),
        "is not a SentencePiece model",
    ),
    "spm text": (lambda path: (path / "tokenizer.model").write_text("not a model"), "SentencePiece"),
    "unigram": (
        lambda path: (path / "tokenizer.model").write_bytes(b"\x0a\x03\x0a\x01a"),
        r"is no BPE model \(type 1\)",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_with_a_tokenizer_is_named(folder: Callable[[str], Path], case: str) -> None:
    damage, message = BROKEN[case]
    path = folder("llama")
    damage(path)
    with pytest.raises(FormatError, match=rf"^\[.*{message}"):
        vocabulary_metadata(Checkpoint(path))
