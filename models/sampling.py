"""Sampling: from a row of logits to the next token, in llama.cpp's order.

repetition penalty -> top-k -> top-p -> min-p -> temperature -> a draw. Temperature 0 takes the most likely token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from math import log

import numpy as np

from graphrt.dtypes import Array
from graphrt.errors import SettingsError


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen.

    Args:
        temperature: divides the logits; 0 or less: always the most likely token.
        top_k: keep that many of the most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens until their probabilities add up to this; 1 keeps all.
        min_p: keep tokens at least this share as likely as the most likely one; 0 keeps all.
        repeat_penalty: divides positive and multiplies negative logits of recent tokens; 1 changes nothing.
        repeat_last: how many recent tokens the penalty looks at.
        seed: of the draws; None takes one from the system.
    Raises: SettingsError for a value out of range.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last: int = 64
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, self.temperature == self.temperature, "must be a number")
        _check("top_k", self.top_k, self.top_k >= 0, "must be 0 (all tokens) or more")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "must be above 0 and at most 1")
        _check("min_p", self.min_p, 0 <= self.min_p <= 1, "must be from 0 to 1")
        _check("repeat_penalty", self.repeat_penalty, self.repeat_penalty > 0, "must be above 0")
        _check("repeat_last", self.repeat_last, self.repeat_last >= 0, "must be 0 (none) or more")
        _check("seed", self.seed, self.seed is None or self.seed >= 0, "must be 0 or more")


class Sampler:
    """Chooses tokens one after the other, and remembers them for the repetition penalty.

    Args:
        options: how to choose.
        recent: tokens that stand before the first choice, such as the prompt's.
        excluded: tokens that are never chosen.
    """

    def __init__(self, options: SamplingOptions, recent: Iterable[int] = (), excluded: Iterable[int] = ()) -> None:
        self.options = options
        self._excluded = np.fromiter(excluded, np.int64)
        self._recent: deque[int] = deque(recent, maxlen=options.repeat_last)
        self._random = np.random.default_rng(options.seed)

    def sample(self, logits: Array) -> int:
        """The next token.

        Args: logits [V] f32; left as they are.
        """
        options = self.options
        if self._excluded.size:
            logits = logits.copy()
            logits[self._excluded] = -np.inf
        if options.repeat_penalty != 1.0 and self._recent:
            logits = penalise(logits, np.unique(np.fromiter(self._recent, np.int64)), options.repeat_penalty)
        token = int(np.argmax(logits)) if options.temperature <= 0 else self._draw(logits)
        self._recent.append(token)
        return token

    def _draw(self, logits: Array) -> int:
        tokens, kept = candidates(logits, self.options)
        shares = _softmax(kept / self.options.temperature)
        at = int(np.searchsorted(np.cumsum(shares), self._random.random(), side="right"))
        return int(tokens[min(at, len(tokens) - 1)])


def penalise(logits: Array, tokens: Array, penalty: float) -> Array:
    """A copy of the logits [V] in which the given tokens (each once) are less likely."""
    changed = logits.copy()
    seen = changed[tokens]
    changed[tokens] = np.where(seen > 0, seen / penalty, seen * penalty)
    return changed


def candidates(logits: Array, options: SamplingOptions) -> tuple[Array, Array]:
    """The tokens that top-k, top-p and min-p leave, the most likely first, and their logits."""
    tokens = _most_likely(logits, options.top_k)
    kept = logits[tokens].astype(np.float64)
    if options.top_p < 1:
        # The token that reaches the sum stays in.
        count = int(np.searchsorted(np.cumsum(_softmax(kept)), options.top_p)) + 1
        tokens, kept = tokens[:count], kept[:count]
    if options.min_p > 0:
        count = int(np.count_nonzero(kept >= kept[0] + log(options.min_p)))
        tokens, kept = tokens[:count], kept[:count]
    return tokens, kept


def _most_likely(logits: Array, count: int) -> Array:
    """Tokens by falling logits: the first `count`, or all for 0; equal logits keep the order of their ids."""
    if not 0 < count < len(logits):
        return np.argsort(-logits, kind="stable")
    threshold = np.partition(logits, -count)[-count]
    tokens = np.flatnonzero(logits >= threshold)
    return tokens[np.argsort(-logits[tokens], kind="stable")][:count]


def _softmax(logits: Array) -> Array:
    shares: Array = np.exp(logits - logits.max())
    shares /= shares.sum()
    return shares


def _check(name: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise SettingsError(f"[sampling] {name} is {value}; it {rule}")
