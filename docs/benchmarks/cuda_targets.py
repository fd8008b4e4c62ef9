"""What the GPU's speed is to be, on an H200, and whether the results reach it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from docs.benchmarks.cuda_models import LITE, MIXTRAL, point

DEVICE = "H200"  # the targets are for it; other devices' figures are shown beside them all the same
SEQUENCES, CELLS = 64, 8192


@dataclass(frozen=True)
class Target:
    """One figure.

    Args:
        what: in words.
        wanted: the least that is to be reached, or the most where `is_most`.
        measured: None where a measurement is missing.
        form: of both numbers.
    """

    what: str
    wanted: float
    measured: float | None
    form: str = "{:.0f}"
    is_most: bool = False

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return "not measured"
        is_reached = self.measured <= self.wanted if self.is_most else self.measured >= self.wanted
        return "reached" if is_reached else "not reached"

    def row(self) -> str:
        """As a row of a table."""
        measured = "–" if self.measured is None else self.form.format(self.measured)
        wanted = f"{'at most' if self.is_most else 'at least'} {self.form.format(self.wanted)}"
        return f"| {self.what} | {wanted} | {measured} | {self.verdict} |"


def mla_case(heads: int, sequences: int, cells: int) -> str:
    """The name of a case of MLA decoding."""
    return f"MLA decoding, {heads} heads, {sequences} sequences of {cells} cells"


def targets(results: Mapping[str, Any]) -> Iterator[Target]:
    """All of them, with what was measured."""

    def model(key: str, field: str) -> float | None:
        return results["models"].get(key, {}).get(field)

    def attention(heads: int, field: str) -> float | None:
        found = results["kernels"].get(mla_case(heads, SEQUENCES, CELLS), {}).get(field)
        return None if found is None else found / 1e12

    mixtral, lite = point(MIXTRAL, "all"), point(LITE, "all")
    percent = "{:.0%}"
    yield Target("Mixtral, decode, share of the bandwidth", 0.6, model(mixtral, "decode_share"), percent)
    yield Target("V2-Lite, decode, tokens/s", 850, model(lite, "decode_tokens_per_second"))
    yield Target("MLA decoding, 16 heads, TB/s", 2.8, attention(16, "bytes"), "{:.2f}")
    yield Target("MLA decoding, 128 heads, TFLOP/s", 250, attention(128, "flops"))
    yield Target("Mixtral, prompt, share of bf16 products", 0.35, model(mixtral, "prompt_share"), percent)
    for name, key in (("Mixtral", mixtral), ("V2-Lite", lite)):
        seconds = model(key, "host_seconds_per_step")
        yield Target(
            f"{name}, the host's own µs in a step", 60, None if seconds is None else 1e6 * seconds, is_most=True
        )
