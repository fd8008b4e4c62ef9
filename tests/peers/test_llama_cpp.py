"""Logits and greedy tokens beside llama.cpp's, on the same files.

Both sides keep an f32 cache, and llama.cpp goes without flash attention, which rounds to f16. In f32 nothing is left
but the order of sums. In other types each rounds activations in its own way; so each is also held against exact logits:
the same values in f32.

The error of a token is the mean squared difference over the mean square of its logits; that of a file is the median
over its tokens, because rounding now and then flips a router's choice, and that token's logits are then no measure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest

import graphrt
from graphrt.models.batch import Batch
from graphrt.testing import normalised_error
from tests.peers.conftest import KINDS, MODELS, Files

llama_cpp_peer = pytest.importorskip("tests.peers.llama_cpp_peer", reason="needs llama-cpp-python: make test-peers")
pytestmark = pytest.mark.peers

TOKENS = [1, *np.random.default_rng(11).integers(3, 1024, 47).tolist()]
PROMPT = TOKENS[:16]
GREEDY = 64
CONTEXT = 128
EXACT = 1e-9  # error of sums in f32
SLACK = 2.0  # times llama.cpp's own error


@dataclass(frozen=True)
class Answers:
    """What one side makes of a file: logits [T, V] of TOKENS in one go and one by one, greedy tokens after PROMPT."""

    prompt: np.ndarray
    steps: np.ndarray
    greedy: list[int]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_logits_and_greedy_tokens(name: str, kind: str, files: Files, report: Callable[..., None]) -> None:
    path = files.find(name, kind)
    ours, theirs = ask_graphrt(path), ask_llama_cpp(path)
    exact = theirs if kind == "f32" else ask_llama_cpp(files.exact(path))
    pairs = zip(ours.greedy, theirs.greedy, strict=True)
    alike = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    for how, mine, other, truth in (
        ("prompt", ours.prompt, theirs.prompt, exact.prompt),
        ("steps", ours.steps, theirs.steps, exact.steps),
    ):
        my_error, other_error = median_error(mine, truth), median_error(other, truth)
        report(
            name,
            kind,
            how,
            f"{median_error(mine, other):.1e}",
            f"{my_error:.1e}",
            f"{other_error:.1e}",
            f"{np.abs(mine - other).max():.1e} of {np.abs(other).max():.1f}",
            f"{np.mean(mine.argmax(-1) == other.argmax(-1)):.0%} the same",
            f"first {alike} of {GREEDY} the same",
        )
        assert my_error < EXACT + SLACK * other_error
    if kind == "f32":
        assert alike == GREEDY


def median_error(got: np.ndarray, expected: np.ndarray) -> float:
    """Median over the tokens of the normalised mean squared error of logits [T, V]."""
    return float(np.median([normalised_error(a, b) for a, b in zip(got, expected, strict=True)]))


def ask_graphrt(path: Path) -> Answers:
    model = graphrt.load(path, cache_type="f32", n_ctx=CONTEXT)
    context = model.new_context()
    steps = [context.decode(Batch.of([token], position))[-1].copy() for position, token in enumerate(TOKENS)]
    context.clear()
    logits = context.decode(Batch.of(PROMPT))
    greedy: list[int] = []
    for position in range(len(PROMPT), len(PROMPT) + GREEDY):
        greedy.append(int(logits[-1].argmax()))
        logits = context.decode(Batch.of(greedy[-1:], position))
    return Answers(model.logits(TOKENS), np.array(steps), greedy)


def ask_llama_cpp(path: Path) -> Answers:
    with llama_cpp_peer.opened(path, n_ctx=CONTEXT, cache=llama_cpp_peer.F32, flash=False) as peer:
        return Answers(peer.logits(TOKENS), peer.logits_one_by_one(TOKENS), peer.greedy(PROMPT, GREEDY))
