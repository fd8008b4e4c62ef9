"""Perplexity: the protocol, the formulas, and that neither cache, placement nor way to attend changes it."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphrt
from graphrt.backends.sim import SimBackend
from graphrt.errors import GraphError, SettingsError
from graphrt.models.log_probabilities import log_sum_exp, token_losses
from graphrt.models.options import K_CACHES, MLA_VARIANTS
from graphrt.models.perplexity import Estimate, chunks_of, measure, tokens_of

SHAKESPEARE = Path(__file__).parents[3] / "shared" / "data" / "tinyshakespeare.txt"
NAMES = ("tiny-deepseek2", "tiny-mixtral")
N_CTX = 64
PROMPT_CTX = 160  # long enough that every variant treats it as a prompt
CHUNKS, MANY_CHUNKS = 3, 24
DIGITS = 5e-4  # half a unit of the third digit after the first
ROUNDING = 2e-3  # of activations to 8 bits, as tests/peers/test_perplexity.py allows llama.cpp


@pytest.fixture(scope="module")
def held_out() -> str:
    """Text that the tiny models have not seen: what follows the first nine tenths."""
    if not SHAKESPEARE.exists():
        pytest.skip(f"no held-out text at {SHAKESPEARE}")
    text = SHAKESPEARE.read_text(encoding="utf-8")
    return text[len(text) * 9 // 10 :][: 8 * N_CTX * MANY_CHUNKS]


@pytest.fixture
def model(gguf: Callable[..., Path]) -> graphrt.Model:
    """A small float32 model with a context of 16 tokens."""
    return small(gguf)


def small(gguf: Callable[..., Path], **options: Any) -> graphrt.Model:
    return graphrt.load(gguf("mixtral"), n_ctx=16, threads=1, cache_type="f32", **options)


def directly(model: graphrt.Model, rows: np.ndarray) -> np.ndarray:
    """The losses of chunks [K, n_ctx] from the logits of each as a whole, by the textbook's formula, in float64."""
    n_ctx, bos = rows.shape[1], model.tokenizer.vocabulary.bos
    losses = []
    for row in rows:
        logits = model.logits([bos, *row[1:].tolist()]).astype(np.float64)  # [n_ctx, V]
        p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
        losses.append([-log(p[i, row[i + 1]]) for i in range(n_ctx // 2, n_ctx - 1)])
    return np.array(losses)


def drawn(model: graphrt.Model, count: int) -> list[int]:
    """So many ordinary tokens."""
    tokens: list[int] = np.random.default_rng(2).integers(3, model.decoder.vocabulary_size, count).tolist()
    return tokens


@pytest.fixture(scope="module")
def exact(in_float32: Callable[[str], Path]) -> dict[str, Path]:
    """The tiny models in float32: products with their q8_0 weights round activations, each way at other places."""
    return {name: in_float32(name) for name in NAMES}


def ppl(name: str | Path, text: str, n_ctx: int = N_CTX, chunks: int = CHUNKS, **options: Any) -> float:
    model = graphrt.load(name, **{"n_ctx": n_ctx, "threads": 1, "cache_type": "f32", **options})
    return measure(model, text, n_ctx=n_ctx, chunks=chunks).estimate.value


# ---- formulas --------------------------------------------------------------------------------------------------------


def test_losses_are_negative_log_softmax() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (5, 11)).astype(np.float32)
    logits[3] += 5000  # whose exponentials do not fit any float
    targets = np.array([0, 10, 4, 4, 1])
    wide = logits.astype(np.longdouble)
    wide -= wide.max(axis=1, keepdims=True)
    expected = np.log(np.exp(wide).sum(axis=1)) - wide[np.arange(5), targets]
    np.testing.assert_allclose(token_losses(logits, targets), expected.astype(np.float64), rtol=1e-6)
    assert log_sum_exp(np.zeros((1, 8), np.float32))[0] == pytest.approx(log(8))


def test_the_error_is_the_standard_error_of_the_mean() -> None:
    values = np.random.default_rng(1).normal(2, 0.5, 1000)
    found = Estimate.mean(values)
    assert found.value == pytest.approx(values.mean())
    assert found.error == pytest.approx(values.std(ddof=1) / sqrt(1000))
    grown = found.exp()
    assert (grown.value, grown.error) == pytest.approx((exp(found.value), exp(found.value) * found.error))
    assert str(Estimate(12.34567, 0.123456)) == "12.3457 +/- 0.12346"


@pytest.mark.parametrize("values", [np.array([3.0]), np.full(7, 3.0)])
def test_values_that_do_not_vary_have_no_error(values: np.ndarray) -> None:
    assert Estimate.mean(values) == Estimate(3.0, 0.0)


# ---- protocol --------------------------------------------------------------------------------------------------------


def test_chunks_share_nothing_and_leave_out_the_rest() -> None:
    assert chunks_of(range(35), 8).tolist() == np.arange(32).reshape(4, 8).tolist()
    assert chunks_of(range(35), 8, limit=2).tolist() == np.arange(16).reshape(2, 8).tolist()
    assert len(chunks_of(range(35), 8, limit=9)) == 4


def test_what_cannot_be_cut_is_said_with_numbers() -> None:
    with pytest.raises(GraphError, match=r"15 tokens; with n_ctx 8 at least 16 .* at most 7"):
        chunks_of(range(15), 8)
    with pytest.raises(SettingsError, match="n_ctx is 3"):
        chunks_of(range(15), 3)
    with pytest.raises(SettingsError, match="chunks is 0"):
        chunks_of(range(16), 8, limit=0)


def test_chunks_longer_than_the_context_are_refused(model: graphrt.Model) -> None:
    with pytest.raises(SettingsError, match=r"32 tokens .* context of 16; load it with n_ctx=32"):
        measure(model, range(64), n_ctx=32)


@pytest.mark.parametrize("n_ctx", [16, 15, 4])
@pytest.mark.parametrize("n_ubatch", [512, 5, 1])
def test_the_second_half_of_each_chunk_is_scored_after_bos(
    n_ctx: int, n_ubatch: int, gguf: Callable[..., Path]
) -> None:
    model = small(gguf, n_ubatch=n_ubatch)
    tokens = drawn(model, 3 * n_ctx + 2)
    found = measure(model, tokens, n_ctx=n_ctx)
    assert found.losses.shape == (3, n_ctx - n_ctx // 2 - 1)
    expected = directly(model, np.array(tokens[: 3 * n_ctx]).reshape(3, n_ctx))
    np.testing.assert_allclose(found.losses, expected, rtol=2e-5)
    assert found.estimate.value == pytest.approx(exp(expected.mean()), rel=2e-5)


def test_a_model_without_bos_keeps_the_first_token(model: graphrt.Model) -> None:
    tokens = drawn(model, 32)
    with_bos = measure(model, tokens, n_ctx=16).losses
    model.tokenizer.add_bos = False
    without = measure(model, tokens, n_ctx=16).losses
    assert np.abs(without - with_bos).max() > 1e-3
    bos = [1, *tokens[1:16], 1, *tokens[17:]]
    np.testing.assert_array_equal(measure(model, bos, n_ctx=16).losses, with_bos)


def test_control_tokens_in_the_text_are_plain_text(model: graphrt.Model) -> None:
    bos = model.tokenizer.vocabulary.bos
    assert tokens_of(model, "<s>").count(bos) == 1
    assert tokens_of(model, "hello")[0] == bos


def test_the_estimate_is_told_chunk_by_chunk(model: graphrt.Model) -> None:
    told: list[tuple[int, int, Estimate]] = []
    tokens = drawn(model, 48)
    found = measure(model, tokens, n_ctx=16, progress=lambda *each: told.append(each))
    assert [each[:2] for each in told] == [(1, 3), (2, 3), (3, 3)]
    assert told[-1][2] == found.estimate
    assert told[0][2] == measure(model, tokens, n_ctx=16, chunks=1).estimate


# ---- what must not change it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_held_out_text_scores_as_computed_directly(name: str, exact: dict[str, Path], held_out: str) -> None:
    model = graphrt.load(exact[name], n_ctx=N_CTX, threads=1, cache_type="f32")
    expected = directly(model, chunks_of(tokens_of(model, held_out), N_CTX, CHUNKS))
    assert ppl(exact[name], held_out) == pytest.approx(exp(expected.mean()), rel=DIGITS)


@pytest.fixture(scope="module", params=NAMES)
def reference(request: pytest.FixtureRequest, exact: dict[str, Path], held_out: str) -> tuple[Path, float]:
    """A model, and its perplexity over the held-out text with all defaults and a float32 cache."""
    path = exact[request.param]
    return path, ppl(path, held_out)


@pytest.mark.parametrize("name", NAMES)
def test_what_quantized_weights_round_costs_little(name: str, exact: dict[str, Path], held_out: str) -> None:
    """Activations are rounded to 8 bits for them, as by llama.cpp: 6e-4 there, on the same models and another text."""
    rounded, whole = (ppl(each, held_out, chunks=MANY_CHUNKS) for each in (name, exact[name]))
    assert rounded == pytest.approx(whole, rel=ROUNDING)


@pytest.mark.parametrize(("name", "mla"), [("tiny-mixtral", None), *(("tiny-deepseek2", mla) for mla in MLA_VARIANTS)])
def test_a_cache_in_half_precision_changes_nothing(
    name: str, mla: str | None, exact: dict[str, Path], held_out: str
) -> None:
    # Of few tokens a single one whose router takes another expert shows; so more are scored here.
    options = {"chunks": MANY_CHUNKS, "mla": mla}
    whole, half = (ppl(exact[name], held_out, **options, cache_type=dtype) for dtype in ("f32", "f16"))
    assert half == pytest.approx(whole, rel=DIGITS)


@pytest.fixture(scope="module")
def naive(exact: dict[str, Path], held_out: str) -> float:
    """The perplexity of the model with latent attention, its keys and values expanded and cached."""
    return ppl(exact["tiny-deepseek2"], held_out, PROMPT_CTX, mla="naive")


WAYS = [(mla, k_cache) for mla in MLA_VARIANTS for k_cache in K_CACHES if (mla, k_cache) != ("pp-opt", "unroped")]


@pytest.mark.parametrize(("mla", "k_cache"), WAYS)
def test_the_way_to_attend_changes_nothing(
    mla: str, k_cache: str, naive: float, exact: dict[str, Path], held_out: str
) -> None:
    found = ppl(exact["tiny-deepseek2"], held_out, PROMPT_CTX, mla=mla, k_cache=k_cache)
    assert found == pytest.approx(naive, rel=DIGITS)


def test_keys_kept_before_rotation_change_nothing(reference: tuple[Path, float], held_out: str) -> None:
    path, expected = reference
    assert ppl(path, held_out, k_cache="unroped") == pytest.approx(expected, rel=DIGITS)


PLACES: dict[str, dict[str, Any]] = {
    "references": {"backends": ["reference"]},
    "a device": {"backends": ["sim", "cpu"], "gpu_layers": 99},
    "two devices": {
        "backends": [SimBackend("sim0"), SimBackend("sim1"), "cpu"],
        "overrides": [r"blk\.[01]\.=sim0", ".=sim1"],
    },
    "experts on the CPU": {"backends": ["sim", "cpu"], "gpu_layers": 99, "overrides": ["exps=cpu"]},
}


@pytest.mark.parametrize("place", PLACES)
def test_the_placement_changes_nothing(place: str, reference: tuple[Path, float], held_out: str) -> None:
    path, expected = reference
    assert ppl(path, held_out, **PLACES[place]) == pytest.approx(expected, rel=DIGITS)
