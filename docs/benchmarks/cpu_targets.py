"""What the CPU's speed is to be, and whether the results reach it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from docs.benchmarks.cpu_models import SUBJECTS, TYPES

Results = Mapping[str, Mapping[str, Any]]
"""Point ("V2-Lite q8_0 pp512") -> what was measured there."""

DECODE, PROMPT, LONG_PROMPT, DEEP = "tg64", "pp512", "pp8192", "tg64 @ d16384"
DECODE_SHARES = {"bf16": 0.90, "q8_0": 0.90, "q4_0": 0.80, "q4_k_m": 0.80}
# 1.25 times ik_llama.cpp's speed over llama.cpp's, which were measured on one machine.
PROMPT_RATIOS = {
    "V2-Lite": {"bf16": 2.1, "q8_0": 4.5, "q4_0": 3.2, "q4_k_m": 3.5},
    "Mixtral": {"bf16": 3.1, "q8_0": 6.9, "q4_0": 4.8, "q4_k_m": 4.2},
}
AIM = 1.7 / 1.25  # times those: what is aimed at
LONG_PROMPT_RATIO, DEEP_RATIO = 0.6, 0.5


@dataclass(frozen=True)
class Target:
    """One figure.

    Args:
        subject, file_type: of the file.
        what: in words.
        wanted: the least that is to be reached.
        aim: what would be better still, if there is such a number.
        measured: None where a measurement is missing.
    """

    subject: str
    file_type: str
    what: str
    wanted: float
    measured: float | None
    aim: float | None = None

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return "not measured"
        return "reached" if self.measured >= self.wanted else "not reached"


def point(subject: str, file_type: str, test: str) -> str:
    """The key of a result."""
    return f"{subject} {file_type} {test}"


def targets(results: Results, peers: Results) -> Iterator[Target]:
    """All of them, with what was measured."""
    for subject in SUBJECTS:
        for file_type in TYPES:
            yield from _of_file(subject.name, file_type, results, peers)


def _of_file(subject: str, file_type: str, results: Results, peers: Results) -> Iterator[Target]:
    def speed(test: str) -> float | None:
        return _median(results, point(subject, file_type, test), "tokens_per_second")

    def beside(test: str) -> float | None:
        return peers.get(point(subject, file_type, test), {}).get("ratio")

    share = _median(results, point(subject, file_type, DECODE), "share")
    yield Target(subject, file_type, "decode, share of the bandwidth", DECODE_SHARES[file_type], share)
    yield Target(subject, file_type, "decode, ratio to llama.cpp", 1.0, beside(DECODE))
    wanted = PROMPT_RATIOS[subject][file_type]
    yield Target(subject, file_type, "pp512, ratio to llama.cpp", wanted, beside(PROMPT), aim=wanted * AIM)
    if file_type == "q8_0" or speed(LONG_PROMPT) is not None:
        ratio = _ratio(speed(LONG_PROMPT), speed(PROMPT))
        yield Target(subject, file_type, "pp8192 over pp512", LONG_PROMPT_RATIO, ratio)
    if file_type == "q8_0":
        ratio = _ratio(speed(DEEP), speed(DECODE))
        yield Target(subject, file_type, "decode after 16384 tokens over after none", DEEP_RATIO, ratio)


def fallen(results: Results, recorded: Results, tolerance: float) -> list[str]:
    """The points whose share of the limit is less than the recorded one by more than the tolerance, in words."""
    found = []
    for name, before in recorded.items():
        share, then = _median(results, name, "share"), median(before["share"])
        if share is not None and share < then * (1 - tolerance):
            found.append(f"{name}: {share:.3f} of the limit, {then:.3f} recorded ({share / then - 1:+.0%})")
    return found


def _median(results: Results, name: str, field: str) -> float | None:
    return median(results[name][field]) if name in results else None


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or below is None else above / below
