"""How far a model's probabilities are from another's, whose log-probabilities were saved: llama-perplexity's figures.

For each token scored, with p the model's probabilities and q those that were saved (the base):

    KL divergence   Σ q·(ln q - ln p) over the vocabulary; where ln q <= -16, which saved files cannot tell, 0
    Δp              p - q of the token that the text has
    same top        whether both hold the same token for the most likely

R rows of logits, V vocabulary, N tokens scored.
Source: llama.cpp, tools/perplexity/perplexity.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np

from graphrt.dtypes import Array
from graphrt.errors import FormatError
from graphrt.models.log_probabilities import DEEPEST, LogProbabilities, decode, log_sum_exp, token_losses
from graphrt.models.perplexity import Estimate, score

if TYPE_CHECKING:
    from graphrt.models.model import Model

Progress = Callable[[int, int, "Divergence"], None]


@dataclass(frozen=True)
class Divergence:
    """What was found for each token: arrays [N].

    Args:
        losses, base_losses: -ln p and -ln q of the text's token.
        kl: KL divergence, in nats.
        probability_change: Δp.
        same_top: whether the most likely tokens agree.
    """

    losses: Array
    base_losses: Array
    kl: Array
    probability_change: Array
    same_top: Array

    @property
    def perplexity(self) -> Estimate:
        """Of the model."""
        return Estimate.mean(self.losses).exp()

    @property
    def base_perplexity(self) -> Estimate:
        """Of the base."""
        return Estimate.mean(self.base_losses).exp()

    @property
    def log_ratio(self) -> Estimate:
        """ln(PPL / PPL of the base); the two are of the same tokens, so the error is that of their difference."""
        return Estimate.mean(self.losses - self.base_losses)

    @property
    def ratio(self) -> Estimate:
        """PPL / PPL of the base."""
        return self.log_ratio.exp()

    @property
    def correlation(self) -> float:
        """Of the two models' losses."""
        return float(np.corrcoef(self.losses, self.base_losses)[0, 1])

    @property
    def mean_kl(self) -> Estimate:
        return Estimate.mean(self.kl)

    @property
    def mean_change(self) -> Estimate:
        """The mean Δp."""
        return Estimate.mean(self.probability_change)

    @property
    def rms_change(self) -> Estimate:
        """The root of the mean Δp²."""
        square = Estimate.mean(np.square(self.probability_change))
        root = sqrt(square.value)
        return Estimate(root, 0.5 * square.error / root if root else 0.0)

    @property
    def top_agreement(self) -> Estimate:
        """The share of tokens for which the most likely one is the same."""
        return Estimate.mean(self.same_top.astype(np.float64))


def compare(model: Model, base: LogProbabilities, *, progress: Progress | None = None) -> Divergence:
    """A model's probabilities over a saved file's tokens against the saved ones.

    Args:
        progress: called after each chunk with the chunks done, those in all, and the divergence so far.
    Raises: FormatError if the model's vocabulary is of another size; SettingsError if the file's n_ctx does not fit.
    """
    if base.vocabulary != model.decoder.vocabulary_size:
        raise FormatError(
            f"[kl divergence] the saved log-probabilities are over {base.vocabulary} tokens, the model has "
            f"{model.decoder.vocabulary_size}; compare models of one vocabulary"
        )
    found: list[Divergence] = []
    for number, parts in enumerate(score(model, base.tokens)):
        first = 0
        for logits, targets in parts:
            rows = base.rows[number, first : first + len(targets)]
            found.append(diverge(logits, rows, targets))
            first += len(targets)
        if progress is not None:
            progress(number + 1, len(base.tokens), join(found))
    return join(found)


def diverge(logits: Array, base: Array, targets: Array) -> Divergence:
    """The divergence of logits [R, V] f32 from saved rows [R, …] u16, whose text has the tokens [R]."""
    count, vocabulary = logits.shape
    normaliser = log_sum_exp(logits)
    base_losses, kl, same_top = np.empty(count), np.empty(count), np.empty(count, bool)
    for row in range(count):
        ln_q = decode(base[row], vocabulary)
        ln_p = logits[row] - np.float32(normaliser[row])
        q = np.where(ln_q > -DEEPEST, np.exp(ln_q), 0)
        kl[row] = np.dot(q.astype(np.float64), ln_q - ln_p)
        base_losses[row] = -ln_q[targets[row]]
        same_top[row] = logits[row].argmax() == ln_q.argmax()
    losses = token_losses(logits, targets)
    return Divergence(losses, base_losses, kl, np.exp(-losses) - np.exp(-base_losses), same_top)


def join(parts: list[Divergence]) -> Divergence:
    """Several parts as one."""
    names = ("losses", "base_losses", "kl", "probability_change", "same_top")
    return Divergence(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
