"""The two trained models of the package: their size, their tokenizers, and that they know Shakespeare."""

from pathlib import Path

import numpy as np
import pytest

import graphrt
from graphrt.models.gguf_file import GGUFFile

FOLDER = Path(__file__).parents[2] / "models" / "tiny"
SHAKESPEARE = Path(__file__).parents[3] / "shared" / "data" / "tinyshakespeare.txt"
NAMES = ("tiny-deepseek2", "tiny-mixtral")

# Spoken in Twelfth Night, which is in neither the training nor the validation text.
SPEECH = """\
VIOLA:
I left no ring with her: what means this lady?
Fortune forbid my outside have not charm'd her!
She made good view of me; indeed, so much,
That sure methought her eyes had lost her tongue,
For she did speak in starts distractedly.
She loves me, sure; the cunning of her passion
Invites me in this churlish messenger.
"""


def nats_per_character(model: graphrt.Model, text: str, window: int = 512) -> float:
    """Cross entropy of a text, cut into windows that begin with BOS and share no context, over its characters."""
    bos, *ids = model.tokenize(text, add_special=True)
    nats = 0.0
    for first in range(0, len(ids), window - 1):
        row = [bos, *ids[first : first + window - 1]]
        logits = model.logits(row[:-1]).astype(np.float64)  # [T, V]
        top = logits.max(axis=-1)
        normaliser = top + np.log(np.exp(logits - top[:, None]).sum(axis=-1))
        nats += float((normaliser - logits[np.arange(len(logits)), row[1:]]).sum())
    return nats / len(text)


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> graphrt.Model:
    """One of the models, under its name."""
    return graphrt.load(request.param)


@pytest.mark.parametrize("name", NAMES)
def test_files_are_small_and_quantized(name: str) -> None:
    path = FOLDER / f"{name}.gguf"
    assert path.stat().st_size <= 8_000_000
    tensors = GGUFFile.open(path).tensors.values()
    matrices = {tensor.name: tensor.dtype.name for tensor in tensors if len(tensor.shape) > 1}
    routers = {name: dtype for name, dtype in matrices.items() if "ffn_gate_inp" in name}
    assert set(routers.values()) == {"f32"}
    assert {dtype for name, dtype in matrices.items() if name not in routers} == {"q8_0"}


def test_text_survives_the_tokenizer(model: graphrt.Model) -> None:
    assert model.detokenize(model.tokenize(SPEECH)) == SPEECH
    unseen = "naïve ☃ \t 42"
    assert model.detokenize(model.tokenize(unseen)) == unseen


def test_verse_is_likely_and_its_words_in_another_order_are_not(model: graphrt.Model) -> None:
    verse = nats_per_character(model, SPEECH)
    words = SPEECH.split()
    shuffled = nats_per_character(model, " ".join(np.random.default_rng(0).permutation(words)))
    assert verse < 2.0
    assert shuffled > verse + 0.3


def test_greedy_text_is_made_of_shakespeares_words(model: graphrt.Model) -> None:
    if not SHAKESPEARE.exists():
        pytest.skip(f"no text to look words up in at {SHAKESPEARE}")
    known = set(SHAKESPEARE.read_text(encoding="utf-8").split())
    written = "".join(model.generate("ROMEO:\n", max_tokens=120, temperature=0.0)).split()[:-1]
    assert len(written) > 30
    assert sum(word in known for word in written) > 0.9 * len(written)


@pytest.mark.skipif(not SHAKESPEARE.exists(), reason=f"no validation text at {SHAKESPEARE}")
def test_validation_loss_is_the_recorded_one(model: graphrt.Model) -> None:
    recorded = {"tiny-deepseek2": 1.51, "tiny-mixtral": 1.53}[model.file.path.stem]  # models/tiny/README.md
    text = SHAKESPEARE.read_text(encoding="utf-8")
    held_out = text[len(text) * 9 // 10 :]
    pieces = [held_out[start : start + 1500] for start in range(0, len(held_out) - 1500, len(held_out) // 10)]
    assert np.mean([nats_per_character(model, piece) for piece in pieces]) == pytest.approx(recorded, abs=0.07)
