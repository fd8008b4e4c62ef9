"""Logits and greedy tokens beside llama.cpp's, on the same files.

Errors are normalised: the mean squared difference over the mean square of the logits. Both sides keep an f32 cache, and
llama.cpp goes without flash attention, which rounds to f16. In f32 nothing is left but the order of sums. In other
types each rounds activations in its own way; so each is also held against exact logits: the same values in f32.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest

import graphrt
from graphrt.models.context import Batch
from graphrt.testing import normalised_error
from tests.peers.conftest import KINDS, MODELS, Files

llama_cpp_peer = pytest.importorskip("tests.peers.llama_cpp_peer", reason="needs llama-cpp-python: make test-peers")
pytestmark = pytest.mark.peers

TOKENS = [1, *np.random.default_rng(11).integers(3, 1024, 47).tolist()]
PROMPT = TOKENS[:16]
GREEDY = 64
CONTEXT = 128
EXACT = 1e-9  # normalised error of sums in f32
SLACK = 2.0  # times llama.cpp's own error, since rounding that flips a router's choice is a matter of luck


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_logits_and_greedy_tokens(name: str, kind: str, files: Files, report: Callable[..., None]) -> None:
    path = files.find(name, kind)
    ours, our_tokens = run_graphrt(path)
    theirs, their_tokens = run_llama_cpp(path)
    exact = theirs if kind == "f32" else run_llama_cpp(files.exact(path))[0]
    error = normalised_error(ours, theirs)
    our_error, their_error = normalised_error(ours, exact), normalised_error(theirs, exact)
    alike = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(our_tokens, their_tokens, strict=True))))
    report(
        name,
        kind,
        f"{error:.1e}",
        f"{our_error:.1e}",
        f"{their_error:.1e}",
        f"{np.abs(ours - theirs).max():.1e} of {np.abs(theirs).max():.1f}",
        f"{np.mean(ours.argmax(-1) == theirs.argmax(-1)):.0%} the same",
        f"first {alike} of {GREEDY} the same",
    )
    assert our_error < EXACT + SLACK * their_error
    if kind == "f32":
        assert alike == GREEDY


def run_graphrt(path: Path) -> tuple[np.ndarray, list[int]]:
    """Logits [T, V] of TOKENS, and the greedy tokens after PROMPT."""
    model = graphrt.load(path, cache_type="f32", n_ctx=CONTEXT)
    context = model.new_context()
    logits = context.decode(Batch.of(PROMPT))
    tokens = []
    for position in range(len(PROMPT), len(PROMPT) + GREEDY):
        tokens.append(int(logits[-1].argmax()))
        logits = context.decode(Batch.of(tokens[-1:], position))
    return model.logits(TOKENS), tokens


def run_llama_cpp(path: Path) -> tuple[np.ndarray, list[int]]:
    """The same by llama.cpp."""
    with llama_cpp_peer.opened(path, n_ctx=CONTEXT, cache=llama_cpp_peer.F32, exact=True) as peer:
        return peer.logits(TOKENS), peer.greedy(PROMPT, GREEDY)
