"""Speed of the CPU's attention: python -m graphrt.backends.cpu.bench_attention [THREADS ...] [--only TEXT].

Decoding reads a cache once, so GB/s of it count, beside those of only reading memory; prompts take arithmetic, so
GFLOP/s of the pairs of a token and a cell that it sees count, beside those of products that stay in registers. The
least of several runs counts, and limits are measured in the same run.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

import graphrt
from graphrt import ops
from graphrt.backends.cpu import threads
from graphrt.backends.cpu.bench import best_seconds, read_bandwidth
from graphrt.backends.cpu.bench_ops import attention, values
from graphrt.backends.cpu.peaks import peak
from graphrt.tensor import Tensor

TURNS = 15  # runs of a node, at least
DECODE_CELLS, PROMPT_DEPTHS, PROMPT = (512, 4096, 16384), (0, 2048, 8192), 512


@dataclass(frozen=True)
class Heads:
    """The heads of a model, and how they are attended to."""

    count: int
    kv_heads: int
    widths: tuple[int, int]  # of a key and a value

    def node(self, tokens: int, cells: int, dtype: str) -> Tensor:
        """Attention of the last `tokens` of `cells` positions."""
        return attention(tokens, self.count, self.kv_heads, cells, self.widths, dtype)

    def operations(self, tokens: int, cells: int) -> float:
        return 2.0 * self.count * _pairs(tokens, cells) * sum(self.widths)


@dataclass(frozen=True)
class Expanding:
    """Heads that expand latents, with weights in q8_0."""

    count: int = 16
    nope: int = 128
    rope: int = 64
    value: int = 128
    rank: int = 512

    def node(self, tokens: int, cells: int, dtype: str) -> Tensor:
        """mla_attention of the last `tokens` of `cells` positions."""
        both = values(self.count, self.nope + self.value, self.rank, dtype="q8_0")
        return ops.mla_attention(
            values(tokens, self.count, self.nope + self.rope),
            values(cells, 1, self.rank + self.rope, dtype=dtype),
            both[:, : self.nope],
            both[:, self.nope :],
            graphrt.constant("q_pos", np.arange(cells - tokens, cells, dtype=np.int32)),
            graphrt.constant("q_seq", np.zeros(tokens, np.int32)),
            graphrt.constant("cell_pos", np.arange(cells, dtype=np.int32)),
            graphrt.constant("cell_seq", np.ones(cells, np.int64)),
            scale=(self.nope + self.rope) ** -0.5,
        )

    def operations(self, tokens: int, cells: int) -> float:
        expanding = cells * self.rank * (self.nope + self.value)
        return 2.0 * self.count * (expanding + _pairs(tokens, cells) * (self.nope + self.rope + self.value))


FORMS: dict[str, Heads | Expanding] = {
    "32/8 x 128": Heads(32, 8, (128, 128)),
    "16/16 x 192/128": Heads(16, 16, (192, 128)),
    "absorbed 16 x 576/512": Heads(16, 1, (576, 512)),
    "absorbed 128 x 576/512": Heads(128, 1, (576, 512)),
    "expanding 16 x 192/128": Expanding(),
}
DTYPES = ("f16", "q8_0", "bf16", "f32")


def _pairs(tokens: int, cells: int) -> float:
    """Pairs of a token and a cell that it sees."""
    return tokens * cells - tokens * (tokens - 1) / 2


def seconds_of(node: Tensor, size: int) -> float:
    """The shortest time of a node."""
    program = graphrt.Scheduler(["cpu"], threads=size).plan(graphrt.Graph([node]))
    return best_seconds(program.execute, TURNS)


def lines() -> Iterator[tuple[str, str, int, int]]:
    """Form, dtype, tokens and cells of each line."""
    for name, form in FORMS.items():
        for dtype in DTYPES:
            if isinstance(form, Heads):
                yield from ((name, dtype, 1, cells) for cells in DECODE_CELLS)
            yield from ((name, dtype, PROMPT, PROMPT + depth) for depth in PROMPT_DEPTHS)


@dataclass(frozen=True)
class Limits:
    """What the machine can do with so many threads, measured now: bytes and operations a second."""

    size: int
    reading: float
    f32: float
    bf16: float | None

    @classmethod
    def measured(cls, size: int) -> Limits:
        return cls(size, 1e9 * read_bandwidth(size), peak("f32", size) or np.nan, peak("bf16", size))

    def __str__(self) -> str:
        bf16 = f", bf16 {self.bf16 / 1e9:.0f} GFLOP/s" if self.bf16 else ""
        return f"{self.size} thread(s): reading {self.reading / 1e9:.1f} GB/s, f32 {self.f32 / 1e9:.0f} GFLOP/s{bf16}"


def report(label: str, form: Heads | Expanding, node: Tensor, limits: Limits) -> None:
    """A line of the table."""
    seconds = seconds_of(node, limits.size)
    sources = node.srcs[1 : 2 if isinstance(form, Expanding) else 3]
    caches = {id(source.root): source.root.nbytes for source in sources if source is not None}
    tokens, cells = node.shape[0], node.srcs[1].shape[0] if node.srcs[1] is not None else 0
    read, rate = sum(caches.values()) / seconds, form.operations(tokens, cells) / seconds
    print(f"{label:44}{seconds * 1e3:9.3f} ms{read / 1e9:7.1f} GB/s{read / limits.reading:5.0%} of reading", end="")
    share = f"{rate / limits.bf16:5.0%} of bf16" if limits.bf16 else ""
    print(f"{rate / 1e9:7.0f} GFLOP/s{rate / limits.f32:5.0%} of f32{share}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of the CPU's attention.")
    parser.add_argument("threads", nargs="*", type=int, default=[threads.available_cores()])
    parser.add_argument("--only", default="", help="lines that contain all of these words")
    given = parser.parse_args()
    for size in given.threads:
        limits = Limits.measured(size)
        print(f"\n{limits}", flush=True)
        for name, dtype, tokens, cells in lines():
            label = f"{name} {dtype} {'decode' if tokens == 1 else 'prompt'} {cells}"
            if all(word in label for word in given.only.split()):
                report(label, FORMS[name], FORMS[name].node(tokens, cells, dtype), limits)


if __name__ == "__main__":
    main()
