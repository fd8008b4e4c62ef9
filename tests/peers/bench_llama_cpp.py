"""Speed beside llama.cpp's, on one file, with the same threads, the two taking turns.

    python -m tests.peers.bench_llama_cpp                       # DeepSeek-V2-Lite's shape, 4 layers, q8_0
    python -m tests.peers.bench_llama_cpp --model model.gguf --prompt 512 --decode 64 --rounds 5

A run is one prompt, then tokens one by one. The best of each one's runs counts, since what else the machine does only
ever takes time away.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import graphrt
from graphrt.models.batch import Batch
from graphrt.models.context import Context
from graphrt.models.synth import synthesise
from tests.peers import llama_cpp_peer
from tests.peers.llama_cpp_peer import Peer


@dataclass
class Speed:
    """The best rates seen, in tokens per second."""

    prompt: float = 0.0
    decode: float = 0.0

    def see(self, n_prompt: int, n_decode: int, seconds: tuple[float, float]) -> None:
        self.prompt = max(self.prompt, n_prompt / seconds[0])
        self.decode = max(self.decode, n_decode / seconds[1])


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / f"{options.preset}-{options.layers}-layers-{options.type}.gguf"
        path = options.model or synthesise(options.preset, made, layers=options.layers, dtype=options.type)
        compare(path, options)


def compare(path: Path, options: argparse.Namespace) -> None:
    """Time both, print a line a round, and the ratio of the best."""
    n_ctx = options.prompt + options.decode
    ours, theirs = Speed(), Speed()
    context = graphrt.load(path, n_ctx=n_ctx, threads=options.threads).new_context()
    tokens = np.random.default_rng(0).integers(0, context.decoder.vocabulary_size, n_ctx).tolist()
    with llama_cpp_peer.opened(path, n_ctx=n_ctx, threads=options.threads) as peer:
        for number in range(options.rounds + 1):
            mine, other = time_graphrt(context, tokens, options.prompt), time_llama_cpp(peer, tokens, options.prompt)
            if number:  # the first round compiles and warms up
                ours.see(options.prompt, options.decode, mine)
                theirs.see(options.prompt, options.decode, other)
    print(f"{path.name}, {options.threads} threads, best of {options.rounds} rounds, tokens/s")
    print(f"{'':12}{'graphrt':>10}{'llama.cpp':>12}{'ratio':>8}")
    print(f"{f'pp{options.prompt}':12}{ours.prompt:10.2f}{theirs.prompt:12.2f}{ours.prompt / theirs.prompt:8.2f}")
    print(f"{f'tg{options.decode}':12}{ours.decode:10.2f}{theirs.decode:12.2f}{ours.decode / theirs.decode:8.2f}")


def time_graphrt(context: Context, tokens: list[int], n_prompt: int) -> tuple[float, float]:
    """Seconds of the prompt and of decoding."""
    context.clear()
    start = time.perf_counter()
    context.decode(Batch.of(tokens[:n_prompt]))
    between = time.perf_counter()
    for position in range(n_prompt, len(tokens)):
        context.decode(Batch.of(tokens[position : position + 1], position))
    return between - start, time.perf_counter() - between


def time_llama_cpp(peer: Peer, tokens: list[int], n_prompt: int) -> tuple[float, float]:
    """The same by llama.cpp."""
    peer.clear()
    start = time.perf_counter()
    peer.feed(tokens[:n_prompt])
    between = time.perf_counter()
    for token in tokens[n_prompt:]:
        peer.feed([token])
    return between - start, time.perf_counter() - between


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a GGUF file; else one is synthesised")
    parser.add_argument("--preset", default="deepseek-v2-lite")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--type", default="q8_0")
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--decode", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    return parser.parse_args()


if __name__ == "__main__":
    main()
