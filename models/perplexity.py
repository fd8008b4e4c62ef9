"""Perplexity after llama-perplexity's protocol: how well a model foretells a text.

    PPL = exp(mean loss),   loss of a token = -ln p(token | those before it in its chunk)

The text's tokens are cut into chunks of n_ctx that share no context. Where the model wants BOS, it stands in place of
each chunk's first token. The first half of a chunk is context; the tokens at n_ctx/2 + 1 to n_ctx - 1 are scored. The
error is the standard error of the mean loss, times PPL.

K chunks, R rows of logits, V vocabulary.
Source: llama.cpp, tools/perplexity/perplexity.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import exp, sqrt
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graphrt.dtypes import Array
from graphrt.errors import GraphError, SettingsError
from graphrt.models.batch import Batch
from graphrt.models.log_probabilities import LogProbabilityWriter, token_losses

if TYPE_CHECKING:
    from graphrt.models.context import Context
    from graphrt.models.model import Model

LEAST_CHUNK = 4
Progress = Callable[[int, int, "Estimate"], None]


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error."""

    value: float
    error: float

    @classmethod
    def mean(cls, values: Array) -> Estimate:
        """The mean of independent values: error sqrt((E[x²] - E[x]²) / (n - 1))."""
        count = values.size
        if count < 2:
            return cls(float(values.mean()) if count else 0.0, 0.0)
        value = float(values.mean())
        variance = float(np.square(values, dtype=np.float64).mean()) - value * value
        return cls(value, sqrt(max(0.0, variance) / (count - 1)))

    def exp(self) -> Estimate:
        """e to that value; the error grows by the slope there."""
        return Estimate(exp(self.value), exp(self.value) * self.error)

    def __str__(self) -> str:
        return f"{self.value:.4f} +/- {self.error:.5f}"


@dataclass(frozen=True)
class Perplexity:
    """A measured perplexity.

    Args:
        n_ctx: tokens of a chunk.
        losses: [K, n_ctx - n_ctx/2 - 1] f64, of each token scored, in nats.
    """

    n_ctx: int
    losses: Array

    @property
    def estimate(self) -> Estimate:
        """The perplexity over all chunks, and its error."""
        return Estimate.mean(self.losses).exp()


def measure(
    model: Model,
    text: str | Sequence[int],
    *,
    n_ctx: int = 512,
    chunks: int | None = None,
    save: str | Path | None = None,
    progress: Progress | None = None,
) -> Perplexity:
    """A model's perplexity over a text.

    Args:
        text: or its tokens, BOS among them where the model wants one.
        n_ctx: tokens of a chunk, at most the model's n_ctx.
        chunks: stop after that many.
        save: a file for the log-probabilities, against which divergence.compare holds another model's.
        progress: called after each chunk with the chunks done, those in all, and the perplexity so far.
    Raises: GraphError if the text is too short; SettingsError if n_ctx does not fit the model; FormatError if the file
        cannot be written.
    """
    tokens = tokens_of(model, text) if isinstance(text, str) else text
    rows = chunks_of(tokens, n_ctx, chunks)
    losses: list[Array] = []
    vocabulary = model.decoder.vocabulary_size
    with nullcontext() if save is None else LogProbabilityWriter(Path(save), rows, vocabulary) as writer:
        for parts in score(model, rows):
            found = []
            for logits, targets in parts:
                found.append(token_losses(logits, targets))
                if writer is not None:
                    writer.write(logits)
            losses.append(np.concatenate(found))
            if progress is not None:
                progress(len(losses), len(rows), Estimate.mean(np.array(losses)).exp())
    return Perplexity(n_ctx, np.array(losses))


def tokens_of(model: Model, text: str) -> list[int]:
    """A text's tokens as llama-perplexity takes them: with BOS where the model wants it, "<s>" as plain text."""
    return model.tokenizer.encode(text, add_special=True, parse_special=False)


def chunks_of(tokens: Sequence[int], n_ctx: int, limit: int | None = None) -> Array:
    """The tokens as rows of n_ctx, the rest left out: [K, n_ctx] i32.

    Raises: GraphError if there are fewer than two rows.
    """
    if n_ctx < LEAST_CHUNK:
        raise SettingsError(f"[perplexity] n_ctx is {n_ctx}; chunks need at least {LEAST_CHUNK} tokens")
    if len(tokens) < 2 * n_ctx:
        most = len(tokens) // 2
        raise GraphError(
            f"[perplexity] the text has {len(tokens)} tokens; with n_ctx {n_ctx} at least {2 * n_ctx} are needed: give "
            f"a longer text{f', or an n_ctx of at most {most}' if most >= LEAST_CHUNK else ''}"
        )
    count = len(tokens) // n_ctx
    if limit is not None and limit < 1:
        raise SettingsError(f"[perplexity] chunks is {limit}; it must be at least 1")
    count = count if limit is None else min(count, limit)
    return np.asarray(tokens[: count * n_ctx], np.int32).reshape(count, n_ctx)


def score(model: Model, chunks: Array) -> Iterator[Iterator[tuple[Array, Array]]]:
    """Run chunks [K, n_ctx] through a model; for each, the parts of what is scored: logits [R, V] and tokens [R].

    The parts of a chunk must be taken before the next chunk.
    """
    n_ctx = chunks.shape[1]
    if n_ctx > model.n_ctx:
        raise SettingsError(
            f"[perplexity] chunks of {n_ctx} tokens do not fit the model's context of {model.n_ctx}; "
            f"load it with n_ctx={n_ctx}"
        )
    context, bos = model.new_context(), model.tokenizer.vocabulary.bos if model.tokenizer.add_bos else None
    for chunk in chunks:
        context.clear()
        yield _parts(context, chunk, bos, model.options.n_ubatch)


def _parts(context: Context, chunk: Array, bos: int | None, n_ubatch: int) -> Iterator[tuple[Array, Array]]:
    """One chunk, ubatch by ubatch, so that only one ubatch's logits are held."""
    n_ctx, tokens = len(chunk), chunk.copy()
    if bos is not None:
        tokens[0] = bos
    pos = np.arange(n_ctx)
    wanted = (pos >= n_ctx // 2) & (pos < n_ctx - 1)
    batch = Batch(tokens, pos, np.zeros_like(pos), wanted)
    for start in range(0, n_ctx, n_ubatch):
        part = slice(start, start + n_ubatch)
        logits = context.decode(batch[part])
        if len(logits):
            yield logits, chunk[1:][part][wanted[part][: len(chunk) - 1 - start]]
