"""Perplexity beside llama.cpp's, on the same files and text, both after llama-perplexity's protocol.

llama.cpp's is computed here from its logits, since llama-cpp-python has no such tool. Both sides keep an f32 cache,
and llama.cpp goes without flash attention. In f32 and f16 four digits agree. In quantized types both round activations
to 8 bits, each in its own way, and are off the perplexity of the same values in f32 by what that costs.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp
from pathlib import Path

import numpy as np
import pytest

import graphrt
from graphrt.models.perplexity import chunks_of, measure, tokens_of
from tests.peers.conftest import TRAINED, Files

llama_cpp_peer = pytest.importorskip("tests.peers.llama_cpp_peer", reason="needs llama-cpp-python: make test-peers")
pytestmark = pytest.mark.peers

SHAKESPEARE = Path(__file__).parents[3] / "shared" / "data" / "tinyshakespeare.txt"
N_CTX, CHUNKS = 256, 6
FOUR_DIGITS = 5e-5
ROUNDING = 2e-3  # of activations, on these models and this text


@pytest.fixture(scope="module")
def held_out() -> str:
    """Text that the models have not seen."""
    if not SHAKESPEARE.exists():
        pytest.skip(f"no held-out text at {SHAKESPEARE}")
    text = SHAKESPEARE.read_text(encoding="utf-8")
    return text[len(text) * 9 // 10 :][: 8 * N_CTX * CHUNKS]


def ask_graphrt(path: Path, text: str) -> float:
    model = graphrt.load(path, cache_type="f32", n_ctx=N_CTX)
    return measure(model, text, n_ctx=N_CTX, chunks=CHUNKS).estimate.value


def ask_llama_cpp(path: Path, text: str) -> float:
    """By the same protocol, from its logits in float64."""
    model = graphrt.load(path)  # for its tokenizer, which test_tokenizers.py holds against llama.cpp's
    rows = chunks_of(tokens_of(model, text), N_CTX, CHUNKS)
    losses = []
    with llama_cpp_peer.opened(path, n_ctx=N_CTX, cache=llama_cpp_peer.F32, flash=False) as peer:
        for row in rows:
            logits = peer.logits([model.tokenizer.vocabulary.bos, *row[1:].tolist()]).astype(np.float64)
            top = logits.max(axis=1, keepdims=True)
            log_p = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
            losses += [-log_p[i, row[i + 1]] for i in range(N_CTX // 2, N_CTX - 1)]
    return exp(np.mean(losses))


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0", "q4_0", "q4_k"])
@pytest.mark.parametrize("name", TRAINED)
def test_perplexity(name: str, kind: str, files: Files, held_out: str, perplexity_report: Callable[..., None]) -> None:
    path = files.find(name, kind)
    ours, theirs = ask_graphrt(path, held_out), ask_llama_cpp(path, held_out)
    exact = theirs if kind == "f32" else ask_llama_cpp(files.exact(path), held_out)
    perplexity_report(name, kind, f"{ours:.4f}", f"{theirs:.4f}", f"{exact:.4f}", f"{ours / theirs - 1:+.1e}")
    tolerance = FOUR_DIGITS if kind in ("f32", "f16") else ROUNDING
    assert ours == pytest.approx(exact, rel=tolerance)
    assert ours == pytest.approx(theirs, rel=tolerance)
