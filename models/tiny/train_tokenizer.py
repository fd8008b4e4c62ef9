"""Training of the tiny vocabularies: byte-level BPE in DeepSeek's style, SentencePiece in Llama's style."""

import io
import json
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from graphrt.models.pretokenizers import PRETOKENIZERS

VOCABULARY_SIZE = 1024
DEEPSEEK_BOS = "<｜begin▁of▁sentence｜>"
DEEPSEEK_EOS = "<｜end▁of▁sentence｜>"

# Both templates turn a conversation into a scene: the user speaks as ROMEO, the model answers as JULIET.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}\n\n"
    "{% elif message['role'] == 'user' %}ROMEO:\n{{ message['content'] }}\n\n"
    "{% else %}JULIET:\n{{ message['content'] }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}JULIET:\n{% endif %}"
)


class BytePairVocabulary:
    """Byte-level BPE with DeepSeek's special tokens, written as tokenizer.json.

    Args: text to learn from; size, the number of tokens; pre, the pre-tokenizer's name in GGUF's metadata.
    """

    bos, eos = 0, 1

    def __init__(self, text: str, *, size: int = VOCABULARY_SIZE, pre: str = "deepseek-llm") -> None:
        self.tokenizer = Tokenizer(models.BPE())
        patterns = PRETOKENIZERS[pre].patterns
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self.tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
        self.tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[AddedToken(t, special=True, normalized=False) for t in (DEEPSEEK_BOS, DEEPSEEK_EOS)],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        self.tokenizer.train_from_iterator([text], trainer)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`; special tokens are left out."""
        return self.tokenizer.decode(ids)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json."""
        self.tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{DEEPSEEK_BOS} $A", special_tokens=[(DEEPSEEK_BOS, self.bos)]
        )
        self.tokenizer.save(str(folder / "tokenizer.json"))
        write_tokenizer_config(folder, "LlamaTokenizerFast", DEEPSEEK_BOS, DEEPSEEK_EOS)


class SentencePieceVocabulary:
    """SentencePiece BPE with byte fallback and Llama's conventions, written as tokenizer.model.

    Args: text to learn from; size, the number of tokens, 256 of them bytes.
    """

    bos, eos = 1, 2

    def __init__(self, text: str, *, size: int = VOCABULARY_SIZE) -> None:
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(line for line in text.split("\n") if line),
            model_writer=model,
            model_type="bpe",
            vocab_size=size,
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            num_threads=1,
            minloglevel=2,
        )
        self.model = with_dummy_prefix(model.getvalue())
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=self.model)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS."""
        return self.processor.encode(text)

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`; special tokens are left out."""
        return self.processor.decode(ids)

    def save(self, folder: Path) -> None:
        """Write tokenizer.model and tokenizer_config.json."""
        (folder / "tokenizer.model").write_bytes(self.model)
        write_tokenizer_config(folder, "LlamaTokenizer", "<s>", "</s>")


def with_dummy_prefix(model: bytes) -> bytes:
    """Turn on `add_dummy_prefix` in a serialized SentencePiece model.

    Training leaves it off: a line of the text follows a newline, where Llama's tokenizers put no space, so a line's
    first word must be learned without one. A text as a whole does begin with a space in Llama's convention.
    """
    before, after = b"identity\x12\x00\x18\x00", b"identity\x12\x00\x18\x01"  # normalizer_spec: name, charsmap, field 3
    if model.count(before) != 1:
        raise ValueError("[with_dummy_prefix] the normalizer's fields are not where this SentencePiece puts them")
    return model.replace(before, after)


def write_tokenizer_config(folder: Path, tokenizer_class: str, bos: str, eos: str) -> None:
    """Write tokenizer_config.json: special tokens, BOS on, EOS off, and the chat template."""
    config = {
        "tokenizer_class": tokenizer_class,
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": bos,
        "eos_token": eos,
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
