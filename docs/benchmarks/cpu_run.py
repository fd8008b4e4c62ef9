"""Times of prompts and decoding on one loaded file, each beside the machine's limits of the same moment."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import graphrt
from docs.benchmarks.cpu_limits import BANDWIDTH, Limits, least_seconds
from docs.benchmarks.model_work import cache_bytes, operations, weight_bytes
from graphrt.models.batch import Batch

CONTEXT_STEP = 256
PART = 8  # tokens that are decoded between two looks at the limit


@dataclass(frozen=True, order=True)
class Trial:
    """What is timed, in llama-bench's terms: a prompt of `prompt` tokens, or `decode` tokens after `depth` others."""

    depth: int
    prompt: int
    decode: int

    @classmethod
    def of(cls, name: str) -> Trial:
        """From its name: pp512, tg64, tg64 @ d4096."""
        found = re.fullmatch(r"(pp|tg)(\d+)(?: @ d(\d+))?", name)
        if found is None:
            raise ValueError(f"{name!r} is no test; give one as pp512, tg64 or tg64 @ d4096")
        kind, count, depth = found[1], int(found[2]), int(found[3] or 0)
        return cls(depth, count if kind == "pp" else 0, count if kind == "tg" else 0)

    @property
    def name(self) -> str:
        count = f"pp{self.prompt}" if self.prompt else f"tg{self.decode}"
        return count + (f" @ d{self.depth}" if self.depth else "")

    @property
    def length(self) -> int:
        return self.depth + self.prompt + self.decode


class Session:
    """One file, loaded once.

    Args:
        path: the file.
        length: tokens that the longest test needs.
        threads: of the CPU backend.
    """

    def __init__(self, path: Path, length: int, threads: int) -> None:
        size = -(-length // CONTEXT_STEP) * CONTEXT_STEP
        model = graphrt.load(path, n_ctx=size, threads=threads, repack=True)
        self.file, self.context = model.file, model.new_context()
        vocabulary = self.context.decoder.vocabulary_size
        self.tokens: list[int] = np.random.default_rng(0).integers(0, vocabulary, size).tolist()
        self._reached = 0  # tokens that the context holds for tests at a depth

    def run(self, test: Trial) -> float:
        """Seconds of the test; what has to stand before it is put there first."""
        return sum(self.parts(test))

    def parts(self, test: Trial) -> Iterator[float]:
        """Seconds of the prompt, or of every PART decoded tokens."""
        if self._reached != test.depth or not test.depth:
            self.context.clear()
            if test.depth:
                self.context.decode(Batch.of(self.tokens[: test.depth]))
            self._reached = test.depth
        self.context.seq_rm(0, test.depth)
        if test.prompt:
            start = time.perf_counter()
            self.context.decode(Batch.of(self.tokens[test.depth : test.depth + test.prompt], test.depth))
            yield time.perf_counter() - start
        for first in range(test.length - test.decode, test.length, PART):
            start = time.perf_counter()
            for position in range(first, min(first + PART, test.length)):
                self.context.decode(Batch.of(self.tokens[position : position + 1], position))
            yield time.perf_counter() - start

    def work(self, test: Trial) -> Mapping[str, float]:
        """Bytes and operations of the test by the kind of limit that holds for them."""
        if test.prompt:
            return {BANDWIDTH: weight_bytes(self.file, test.prompt), **operations(self.file, test.prompt)}
        return {BANDWIDTH: test.decode * (weight_bytes(self.file) + cache_bytes(self.file) * test.depth)}


def measure(session: Session, test: Trial, limits: Limits, rounds: int) -> dict[str, Any]:
    """Tokens a second and shares of the limit of all rounds; before them one run that compiles and warms up."""
    work = session.work(test)
    session.run(test)
    speeds, shares, seen = [], [], []
    for _ in range(rounds):
        seconds, found, limit = (prompt_once if test.prompt else decode_once)(session, test, limits, work)
        speeds.append((test.prompt + test.decode) / seconds)
        shares.append(found)
        seen.append(limit)
    return {
        "tokens_per_second": [round(speed, 2) for speed in speeds],
        "share": [round(share, 4) for share in shares],
        "limits": {kind: round(statistics.median(each[kind] for each in seen) / 1e9, 1) for kind in work},
    }


Once = tuple[float, float, Mapping[str, float]]  # seconds, the share of the limit, and the limits


def prompt_once(session: Session, test: Trial, limits: Limits, work: Mapping[str, float]) -> Once:
    """A prompt, right after the limits were measured."""
    found = limits.measure(work)
    seconds = session.run(test)
    return seconds, least_seconds(found, work) / seconds, found


def decode_once(session: Session, test: Trial, limits: Limits, work: Mapping[str, float]) -> Once:
    """Between the parts memory is read: its speed may change by half within a second. The median part's share."""
    total, shares, rates = 0.0, [], [limits.bandwidth(1)]
    for first, seconds in zip(range(0, test.decode, PART), session.parts(test), strict=True):
        rates.append(limits.bandwidth(1))
        nbytes = work[BANDWIDTH] * min(PART, test.decode - first) / test.decode
        shares.append(nbytes * (1 / rates[-2] + 1 / rates[-1]) / 2 / seconds)
        total += seconds
    return total, statistics.median(shares), {BANDWIDTH: statistics.median(rates)}


def longest(tests: Iterable[Trial]) -> int:
    return max(test.length for test in tests)
