"""Every way to attend agrees: in mixed batches, after shifts, with keys kept before or after rotation, in any cache."""

from pathlib import Path

import numpy as np
import pytest

import graphrt
from graphrt.models import mla
from graphrt.models.batch import Batch
from graphrt.models.context import Context
from graphrt.models.mla_cost import Curve, Rates

BACKENDS = ["reference", "cpu"]
MODELS = ["deepseek2_lite", "deepseek2", "deepseek3"]
OTHER_DIALECTS = [("deepseek3", "legacy"), ("deepseek3", "both")]
LATENT = ["absorbed", "flashmla2", "auto"]
TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def few_tokens_are_a_prompt(monkeypatch):
    """Let flashmla2 and auto expand for some of these short batches, and absorb for others."""
    rates = Rates(Curve.flat(1e10), Curve.flat(1e11), Curve.flat(1e10), 1e10, "made up")
    monkeypatch.setattr(mla, "PROMPT", 5)
    monkeypatch.setattr("graphrt.models.mla_rates.MeasuredRates.__call__", lambda *_: rates)


def context_of(path: Path | str, mla: str, backend: str, **options) -> Context:
    options = {"cache_type": "f32", "n_ctx": 512, **options}
    return graphrt.load(path, backends=[backend], mla=mla, threads=1, **options).new_context()


def assert_close(got: np.ndarray, right: np.ndarray) -> None:
    assert np.abs(got - right).max() < TOLERANCE * np.abs(right).max()


def mixed(*parts: tuple[int, int, list[int]]) -> Batch:
    """Tokens of several sequences, (sequence, first position, tokens) each, by position; logits of all."""
    rows = [(token, start + i, sequence) for sequence, start, tokens in parts for i, token in enumerate(tokens)]
    rows.sort(key=lambda row: row[1])
    tokens, pos, seq_ids = (np.array(column) for column in zip(*rows, strict=True))
    return Batch(tokens, pos, seq_ids, np.ones(len(rows), bool))


def test_both_ways_are_taken(gguf):
    def ops_of(variant: str, tokens: int) -> set[str]:
        graph = context_of(gguf("deepseek3"), variant, "reference").graph(tokens, 1, 256)
        return {node.op.name for node in graph.nodes}

    for variant in ("flashmla2", "auto"):
        assert "mla_attention" in ops_of(variant, 64)
        assert "mla_attention" not in ops_of(variant, 1)
    assert "mla_attention" not in ops_of("absorbed", 64)
    assert {"soft_max", "transpose"} <= ops_of("pp-opt", 64) - ops_of("absorbed", 64)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["naive", "pp-opt", *LATENT])
@pytest.mark.parametrize(("name", "dialect"), [*((name, "mla") for name in MODELS), *OTHER_DIALECTS])
def test_several_sequences_in_one_batch_get_the_logits_of_each_alone(name, dialect, variant, backend, gguf, expected):
    """A prompt beside the first part of another; its rest beside a token; tokens beside each other."""
    right = expected(name)
    first = right.tokens.tolist()
    other = first[5:20][::-1]
    alone = context_of(gguf(name), "naive", "reference").decode(Batch.of(other, all_logits=True))
    context = context_of(gguf(name, dialect), variant, backend)
    found: dict[int, list[np.ndarray]] = {3: [], 61: []}
    for batch in (
        mixed((3, 0, first[:9]), (61, 0, other[:2])),
        mixed((3, 9, first[9:10]), (61, 2, other[2:12])),
        mixed((3, 10, first[10:11]), (61, 12, other[12:13])),
        mixed((61, 13, other[13:]), (3, 11, first[11:])),
    ):
        for sequence, logits in zip(batch.seq_ids.tolist(), context.decode(batch).copy(), strict=True):
            found[sequence].append(logits)
    assert right.error(np.array(found[3])) < TOLERANCE
    assert_close(np.array(found[61]), alone)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("k_cache", ["roped", "unroped"])
@pytest.mark.parametrize("variant", ["naive", *LATENT])
@pytest.mark.parametrize("name", MODELS)
def test_a_shifted_context_goes_on_alike(name, variant, k_cache, backend, gguf, expected):
    """Tokens are forgotten in the middle, the later ones move up; then come another prompt and single tokens."""
    tokens = expected(name).tokens.tolist()
    right = shifted(context_of(gguf(name), "naive", "reference", k_cache="unroped"), tokens)
    assert_close(shifted(context_of(gguf(name), variant, backend, k_cache=k_cache), tokens), right)


def shifted(context: Context, tokens: list[int]) -> np.ndarray:
    """Logits before and after positions 4 to 8 are forgotten, twice."""
    found = [context.decode(Batch.of(tokens, all_logits=True)).copy()]
    for _ in range(2):
        context.seq_rm(0, 4, 9)
        context.seq_add(0, 9, -1, -5)
        start = context.seq_pos_max(0) + 1
        found.append(context.decode(Batch.of(tokens[:11], start, all_logits=True)).copy())
        found.append(context.decode(Batch.of(tokens[11:12], start + 11)).copy())
    return np.concatenate(found)


def test_a_shift_changes_what_follows(gguf, expected):
    """Else the test above would prove nothing."""
    tokens = expected("deepseek3").tokens.tolist()
    context = context_of(gguf("deepseek3"), "auto", "reference")
    after_shift = shifted(context, tokens)[len(tokens) + 11]
    context.clear()
    context.decode(Batch.of(tokens))
    not_shifted = context.decode(Batch.of(tokens[:12], len(tokens)))[-1]
    assert np.abs(after_shift - not_shifted).max() > 0.01 * np.abs(not_shifted).max()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["naive", *LATENT])
@pytest.mark.parametrize("name", MODELS)
def test_an_unroped_cache_gives_transformers_logits(name, variant, backend, gguf, expected):
    right = expected(name)
    context = context_of(gguf(name), variant, backend, k_cache="unroped")
    prompt = context.decode(Batch.of(right.tokens[: right.prompt], all_logits=True)).copy()
    rest = range(right.prompt, len(right.tokens))
    steps = [context.decode(Batch.of(right.tokens[at : at + 1], at)).copy() for at in rest]
    assert right.error(np.concatenate([prompt, *steps])) < TOLERANCE


def test_pp_opt_refuses_a_shifted_context(gguf, expected):
    with pytest.raises(graphrt.GraphError, match=r"\[mla\] pp-opt multiplies with the keys as the cache has them"):
        shifted(context_of(gguf("deepseek3"), "pp-opt", "reference"), expected("deepseek3").tokens.tolist())


ROUNDING = {"f16": 0.004, "bf16": 0.03, "q8_0": 0.02, "q4_0": 0.35}
"""Root mean square of the logits' change by a cache of that dtype, over theirs: rounding of all layers, added up."""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cache_type", ROUNDING)
@pytest.mark.parametrize(
    ("variant", "k_cache"),
    [*((variant, "roped") for variant in ("naive", "pp-opt", *LATENT)), ("naive", "unroped"), ("absorbed", "unroped")],
)
def test_a_cache_of_fewer_bits_changes_the_logits_by_its_rounding_only(variant, cache_type, k_cache, backend):
    tokens = list(range(200, 248))
    right = context_of("tiny-deepseek2", "naive", "reference").decode(Batch.of(tokens, all_logits=True))
    context = context_of("tiny-deepseek2", variant, backend, cache_type=cache_type, k_cache=k_cache)
    prompt = context.decode(Batch.of(tokens[:40], all_logits=True)).copy()
    steps = [context.decode(Batch.of(tokens[at : at + 1], at)).copy() for at in range(40, 48)]
    change = np.concatenate([prompt, *steps]) - right
    assert np.sqrt(np.mean(change**2) / np.mean(right**2)) < ROUNDING[cache_type]


def test_llama_has_no_latents(gguf):
    with pytest.raises(graphrt.SettingsError, match='mla is "absorbed", but llama models have no latents'):
        graphrt.load(gguf("llama"), mla="absorbed")
