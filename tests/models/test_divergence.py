"""Saved log-probabilities, their file, and what a comparison finds, against direct formulas in float64."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from pathlib import Path

import numpy as np
import pytest

import graphrt
from graphrt.errors import FormatError, SettingsError
from graphrt.models.divergence import Divergence, compare, diverge
from graphrt.models.log_probabilities import DEEPEST, LogProbabilities, LogProbabilityWriter, decode, encode
from graphrt.models.perplexity import Perplexity, measure

N_CTX = 16


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def drawn(seed: int, vocabulary: int = 101, deviation: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, deviation, (20, vocabulary)).astype(np.float32)


# ---- rows and files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", [101, 102])
def test_a_row_keeps_log_probabilities_to_half_a_step(vocabulary: int) -> None:
    logits = drawn(0, vocabulary, deviation=2.0)
    rows = encode(logits)
    assert rows.shape == (20, 4 + 102)
    for row, exact in zip(rows, log_softmax(logits), strict=True):
        assert np.abs(decode(row, vocabulary) - exact).max() < 0.51 * (exact.max() - exact.min()) / 65535 + 1e-5


def test_what_is_deeper_than_sixteen_nats_is_raised() -> None:
    logits = np.array([[0.0, -15.0, -40.0, -np.inf]], np.float32)
    assert decode(encode(logits)[0], 4) == pytest.approx([0, -15, -DEEPEST, -DEEPEST], abs=2e-4)


def test_a_row_of_equal_logits_is_kept() -> None:
    assert decode(encode(np.full((1, 5), 7, np.float32))[0], 5) == pytest.approx([-np.log(5)] * 5)


def test_a_file_has_llama_perplexitys_layout(tmp_path: Path) -> None:
    tokens, logits, path = np.arange(32).reshape(2, 16), drawn(1)[:14], tmp_path / "base.kld"
    with LogProbabilityWriter(path, tokens, 101) as writer:
        writer.write(logits[:5])
        writer.write(logits[5:])
        assert not path.exists(), "only a complete file appears"
    raw = path.read_bytes()
    assert raw[:8] == b"_logits_"
    assert np.frombuffer(raw, "<i4", 3, 8).tolist() == [16, 101, 2]
    assert np.frombuffer(raw, "<i4", 32, 20).tolist() == list(range(32))
    row_bytes = 8 + 2 * 102  # two float32, then a number for each token and one more, since 101 is odd
    assert len(raw) == 20 + 4 * 32 + 14 * row_bytes
    scale, lowest = np.frombuffer(raw, "<f4", 2, 20 + 4 * 32 + 3 * row_bytes)
    codes = np.frombuffer(raw, "<u2", 101, 20 + 4 * 32 + 3 * row_bytes + 8)
    assert lowest + scale * codes[17] == pytest.approx(log_softmax(logits)[3, 17], abs=2e-4)
    opened = LogProbabilities.open(path)
    assert (opened.vocabulary, opened.tokens.tolist()) == (101, tokens.tolist())
    assert opened.rows.shape == (2, 7, 106)
    np.testing.assert_array_equal(opened.rows.reshape(14, 106), encode(logits))


def test_a_file_that_was_not_finished_does_not_appear(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), LogProbabilityWriter(tmp_path / "x", np.zeros((1, 16), int), 8):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda raw: b"", "is no file of log-probabilities"),
        (lambda raw: b"GGUF" + raw[4:], "is no file of log-probabilities"),
        (lambda raw: raw[:-2], r"2 chunks of 16 tokens over 101 take \d.* bytes, the file has"),
        (lambda raw: raw + b"x", "take"),
        (lambda raw: raw[:8] + np.array([16, -1, 2], "<i4").tobytes() + raw[20:], "vocabulary -1"),
        (lambda raw: raw[:8] + np.array([2**31 - 1] * 3, "<i4").tobytes() + raw[20:], "take"),
    ],
)
def test_a_damaged_file_is_refused(damage: Callable[[bytes], bytes], words: str, tmp_path: Path) -> None:
    path = tmp_path / "base.kld"
    with LogProbabilityWriter(path, np.arange(32).reshape(2, 16), 101) as writer:
        writer.write(drawn(1)[:14])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(FormatError, match=words):
        LogProbabilities.open(path)


def test_paths_that_cannot_be_are_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot be read: No such file"):
        LogProbabilities.open(tmp_path / "absent")
    with pytest.raises(FormatError, match="cannot be written: No such file"):
        LogProbabilityWriter(tmp_path / "absent" / "x", np.zeros((1, 16), int), 8)


# ---- figures ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def found() -> tuple[Divergence, np.ndarray, np.ndarray, np.ndarray]:
    """A divergence with ln p and ln q [20, 101] in float64, and the text's tokens."""
    base, logits, targets = drawn(2), drawn(2) + 0.5 * drawn(3), np.arange(20) * 5
    return diverge(logits, encode(base), targets), log_softmax(logits), log_softmax(base), targets


def test_values_of_each_token(found: tuple[Divergence, np.ndarray, np.ndarray, np.ndarray]) -> None:
    values, ln_p, ln_q, targets = found
    at = np.arange(20)
    kl = np.where(ln_q > -DEEPEST, np.exp(ln_q) * (ln_q - ln_p), 0).sum(axis=1)
    np.testing.assert_allclose(values.kl, kl, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(values.losses, -ln_p[at, targets], rtol=1e-5)
    np.testing.assert_allclose(values.base_losses, -ln_q[at, targets], atol=3e-4)
    change = np.exp(ln_p[at, targets]) - np.exp(ln_q[at, targets])
    np.testing.assert_allclose(values.probability_change, change, atol=2e-4)
    np.testing.assert_array_equal(values.same_top, ln_p.argmax(axis=1) == ln_q.argmax(axis=1))
    assert 0 < values.same_top.sum() < 20


def test_figures_of_all_tokens(found: tuple[Divergence, np.ndarray, np.ndarray, np.ndarray]) -> None:
    values = found[0]
    difference = values.losses - values.base_losses
    assert values.log_ratio.value == pytest.approx(difference.mean())
    assert values.log_ratio.error == pytest.approx(difference.std(ddof=1) / sqrt(20))
    assert values.ratio.value == pytest.approx(values.perplexity.value / values.base_perplexity.value)
    assert values.perplexity.value == pytest.approx(np.exp(values.losses.mean()))
    assert values.mean_kl.value == pytest.approx(values.kl.mean())
    square = np.square(values.probability_change)
    assert values.rms_change.value == pytest.approx(sqrt(square.mean()))
    assert values.rms_change.error == pytest.approx(0.5 * square.std(ddof=1) / sqrt(20) / sqrt(square.mean()))
    share = values.same_top.mean()
    assert values.top_agreement.value == pytest.approx(share)
    assert values.top_agreement.error == pytest.approx(sqrt(share * (1 - share) / 19))
    centred = [each - each.mean() for each in (values.losses, values.base_losses)]
    assert values.correlation == pytest.approx(
        np.dot(*centred) / sqrt(np.dot(centred[0], centred[0]) * np.dot(centred[1], centred[1]))
    )


# ---- whole models ----------------------------------------------------------------------------------------------------


def load(gguf: Callable[..., Path], name: str = "mixtral", **options: object) -> graphrt.Model:
    return graphrt.load(gguf(name), n_ctx=N_CTX, threads=1, **options)


@pytest.fixture
def base(gguf: Callable[..., Path], tmp_path: Path) -> tuple[LogProbabilities, Perplexity]:
    """Log-probabilities that a model with a float32 cache saved, and its perplexity."""
    model, path = load(gguf, cache_type="f32"), tmp_path / "base.kld"
    tokens = np.random.default_rng(5).integers(3, model.decoder.vocabulary_size, 3 * N_CTX).tolist()
    perplexity = measure(model, tokens, n_ctx=N_CTX, save=path)
    return LogProbabilities.open(path), perplexity


def test_a_model_does_not_diverge_from_itself(
    base: tuple[LogProbabilities, Perplexity], gguf: Callable[..., Path]
) -> None:
    found = compare(load(gguf, cache_type="f32"), base[0])
    assert found.perplexity == base[1].estimate
    assert abs(found.mean_kl.value) < 1e-6
    assert found.top_agreement.value == 1
    assert found.base_perplexity.value == pytest.approx(base[1].estimate.value, rel=1e-4)


def test_a_coarser_cache_diverges_and_is_told_chunk_by_chunk(
    base: tuple[LogProbabilities, Perplexity], gguf: Callable[..., Path]
) -> None:
    told: list[tuple[int, int]] = []
    fine, coarse = (
        compare(load(gguf, cache_type=kind, n_ubatch=5), base[0], progress=lambda *each: told.append(each[:2]))
        for kind in ("f16", "bf16")
    )
    assert told == [(1, 3), (2, 3), (3, 3)] * 2
    assert 0 < fine.rms_change.value < coarse.rms_change.value
    assert fine.mean_kl.value < coarse.mean_kl.value


def test_another_vocabulary_and_a_short_context_are_refused(
    base: tuple[LogProbabilities, Perplexity], gguf: Callable[..., Path]
) -> None:
    with pytest.raises(FormatError, match=r"over \d+ tokens, the model has 1024"):
        compare(graphrt.load("tiny-mixtral", n_ctx=N_CTX, threads=1), base[0])
    with pytest.raises(SettingsError, match="load it with n_ctx=16"):
        compare(graphrt.load(gguf("mixtral"), n_ctx=8, threads=1), base[0])
