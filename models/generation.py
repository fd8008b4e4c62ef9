"""Generation: a prompt in ubatches, then token after token, with the text streamed as it comes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

from graphrt.dtypes import Array
from graphrt.errors import GraphError
from graphrt.models.batch import Batch
from graphrt.models.context import Context, Progress
from graphrt.models.sampling import Sampler
from graphrt.models.tokenizer import Tokenizer

FinishReason = Literal["running", "end token", "stop string", "max_tokens", "context full"]


@dataclass
class Timings:
    """Where the time went, in seconds."""

    compile_seconds: float = 0.0  # of the plans for prompt and decoding; next to nothing where they are at hand
    prompt_tokens: int = 0
    reused_tokens: int = 0  # of the prompt, which the context knew already
    prompt_seconds: float = 0.0
    decoded_tokens: int = 0
    decode_seconds: float = 0.0  # of the graph's runs, and of the little that stands around them
    sample_seconds: float = 0.0
    context_shifts: int = 0  # how often the full context let go of older tokens

    @property
    def prompt_rate(self) -> float:
        """Tokens of the prompt a second, of those that were run."""
        return (self.prompt_tokens - self.reused_tokens) / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def decode_rate(self) -> float:
        """Tokens a second after the prompt, the graph's runs alone."""
        return self.decoded_tokens / self.decode_seconds if self.decode_seconds else 0.0


class Generation(Iterator[str]):
    """The pieces of text that a model writes after a prompt; iterate to make them.

    Args:
        context: lends a context that knows a beginning of the prompt or nothing, for as long as tokens are made.
        tokenizer: turns tokens into text.
        sampler: chooses tokens.
        prompt: token ids.
        max_tokens: end after that many; None: at the end token, or when the context is full.
        stop: end before any of these strings, which are not given out.
        context_shift: when the context is full, forget half of it and go on.
        keep: tokens at the prompt's beginning that are not forgotten then, -1: all of them; a BOS token never is.
        progress: is told of a long prompt, progress(tokens done, tokens in all).
    Attributes:
        tokens: ids written so far, without the end token.
        finish_reason: why it ended, "running" until then.
        timings: of the prompt, the decoding and the sampling.
    Raises: GraphError if the prompt is empty, does not fit the context, or holds an id that is not in the vocabulary.
    """

    def __init__(
        self,
        context: Callable[[Sequence[int]], AbstractContextManager[Context]],
        tokenizer: Tokenizer,
        sampler: Sampler,
        prompt: Sequence[int],
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        *,
        context_shift: bool = False,
        keep: int = 0,
        progress: Progress | None = None,
    ) -> None:
        if max_tokens is not None and max_tokens < 0:
            raise GraphError(f"[generate] max_tokens is {max_tokens}; it must be 0 or more, or None for no limit")
        self.tokens: list[int] = []
        self.finish_reason: FinishReason = "running"
        self.timings = Timings()
        self._lend = context
        self._tokenizer = tokenizer
        self._sampler = sampler
        self._prompt = prompt
        self._max_tokens = max_tokens
        self._stop = StopStrings(stop)
        self._keep = self._kept(keep) if context_shift else None
        self._progress = progress
        self._pieces = self._run()

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """End early."""
        self._pieces.close()

    def _run(self) -> Generator[str, None, None]:
        text = self._tokenizer.stream()
        with self._lend(self._prompt) as context:
            for token in self._choose_tokens(context):
                self.tokens.append(token)
                piece = self._stop.push(text.push(token))
                if piece:
                    yield piece
                if self._stop.found:
                    self.finish_reason = "stop string"
                    return
        rest = self._stop.push(text.flush()) + self._stop.flush()
        if rest:
            yield rest

    def _choose_tokens(self, context: Context) -> Iterator[int]:
        """The tokens, one by one; each is run through the model only when the next is asked for."""
        if self._max_tokens == 0:
            self.finish_reason = "max_tokens"
            return
        timings = self.timings
        ends = self._tokenizer.vocabulary.end_of_generation
        position = timings.prompt_tokens = len(self._prompt)
        timings.reused_tokens = context.seq_pos_max(0) + 1
        rest = self._prompt[timings.reused_tokens :]
        start = perf_counter()
        context.prepare(len(rest))
        timings.compile_seconds = perf_counter() - start
        start = perf_counter()
        logits = self._run_prompt(context, rest, timings.reused_tokens)
        timings.prompt_seconds = perf_counter() - start
        while True:
            start = perf_counter()
            token = self._sampler.sample(logits)
            timings.sample_seconds += perf_counter() - start
            if token in ends:
                self.finish_reason = "end token"
                return
            yield token
            if len(self.tokens) == self._max_tokens:
                self.finish_reason = "max_tokens"
                return
            if context.cells.used == context.size:
                if self._keep is None:
                    self.finish_reason = "context full"
                    return
                position -= context.shift(self._keep)
                timings.context_shifts += 1
            start = perf_counter()
            logits = context.decode(Batch.of([token], position))[-1]
            timings.decode_seconds += perf_counter() - start
            timings.decoded_tokens += 1
            position += 1

    def _run_prompt(self, context: Context, tokens: Sequence[int], start: int) -> Array:
        """The logits after the prompt, of which `tokens` are to be run."""
        context.progress = self._progress
        try:
            return context.decode(Batch.of(tokens, start))[-1]
        finally:
            context.progress = None

    def _kept(self, keep: int) -> int:
        """How many tokens a context shift leaves in place."""
        length, bos = len(self._prompt), self._tokenizer.vocabulary.bos
        begins_with_bos = bos is not None and list(self._prompt[:1]) == [bos]
        return max(length if keep < 0 else min(keep, length), int(begins_with_bos))


class StopStrings:
    """Watches a text that comes in pieces for strings that end it; what may be the beginning of one is held back."""

    def __init__(self, strings: Sequence[str]) -> None:
        self.found = False
        self._strings = [strings] if isinstance(strings, str) else [string for string in strings if string]
        self._held = ""

    def push(self, piece: str) -> str:
        """The text that can be given out now; once a stop string is found, what stands before it."""
        text = self._held + piece
        places = [at for at in (text.find(string) for string in self._strings) if at >= 0]
        if places:
            self.found = True
            self._held = ""
            return text[: min(places)]
        held = max((_overlap(text, string) for string in self._strings), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """What is held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    """Length of the longest end of the text that `string` begins with."""
    return next((n for n in range(min(len(text), len(string) - 1), 0, -1) if text.endswith(string[:n])), 0)
