"""mla=auto beside llama.cpp's two ways, with and without flash attention, on one DeepSeek file, taking turns.

    python -m tests.peers.bench_mla                             # DeepSeek-V2-Lite's shape, 4 layers, q8_0
    python -m tests.peers.bench_mla --points 512@0,1@8192 --rounds 5

A point is a number of tokens at a depth: so many run in one go, after so many others. The context keeps the others from
round to round. The best of each one's rounds counts, since what else the machine does only ever takes time away.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

import graphrt
from graphrt.models.batch import Batch
from graphrt.models.context import Context
from graphrt.models.synth import synthesise
from tests.peers import llama_cpp_peer
from tests.peers.llama_cpp_peer import Peer

POINTS = "512@0,1@512,512@2048,64@2048,1@2048"
OURS, WAYS = "graphrt auto", {"llama.cpp fa": True, "llama.cpp": False}
Feed = Callable[[Sequence[int], int], None]


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / f"{options.preset}-{options.layers}-layers-{options.type}.gguf"
        path = options.model or synthesise(options.preset, made, layers=options.layers, dtype=options.type)
        print(f"{path.name}, {options.threads} threads, best of {options.rounds} rounds, tokens/s")
        print(f"{'tokens @ depth':16}{OURS:>14}{''.join(f'{name:>14}' for name in WAYS)}{'ratio to best':>15}")
        for tokens, depth, rates in measure(path, options):
            best = max(rates[name] for name in WAYS)
            cells = "".join(f"{rates[name]:14.1f}" for name in (OURS, *WAYS))
            print(f"{f'{tokens} @ {depth}':16}{cells}{rates[OURS] / best:15.2f}", flush=True)


def measure(path: Path, options: argparse.Namespace) -> Iterator[tuple[int, int, dict[str, float]]]:
    """The tokens per second of all three at each point, those of one depth together."""
    points = sorted(options.points, key=lambda point: point[1])
    n_ctx = -(-max(tokens + depth for tokens, depth in points) // 256) * 256
    context = graphrt.load(path, n_ctx=n_ctx, threads=options.threads).new_context()
    ids = np.random.default_rng(0).integers(0, context.decoder.vocabulary_size, n_ctx).tolist()
    with ExitStack() as opened:
        sides = {OURS: ours(context)}
        for name, flash in WAYS.items():
            sides[name] = theirs(
                opened.enter_context(llama_cpp_peer.opened(path, n_ctx=n_ctx, threads=options.threads, flash=flash))
            )
        reached = 0
        for tokens, depth in points:
            for feed in sides.values():
                if depth > reached:
                    feed(ids[reached:depth], reached)
            reached = depth
            best = dict.fromkeys(sides, 0.0)
            for number in range(options.rounds + 1):
                for name, feed in sides.items():
                    start = time.perf_counter()
                    feed(ids[depth : depth + tokens], depth)
                    if number:  # the first round compiles and warms up
                        best[name] = max(best[name], tokens / (time.perf_counter() - start))
            yield tokens, depth, best


def ours(context: Context) -> Feed:
    """Runs tokens at a position, in place of what stood there."""

    def feed(tokens: Sequence[int], position: int) -> None:
        context.seq_rm(0, position)
        context.decode(Batch.of(tokens, position))

    return feed


def theirs(peer: Peer) -> Feed:
    """The same by llama.cpp."""

    def feed(tokens: Sequence[int], position: int) -> None:
        peer.forget_from(position)
        peer.feed(tokens)

    return feed


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a GGUF file; else one is synthesised")
    parser.add_argument("--preset", default="deepseek-v2-lite")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--type", default="q8_0")
    parser.add_argument("--points", type=points_of, default=points_of(POINTS), metavar="TOKENS@DEPTH,…")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    return parser.parse_args()


def points_of(text: str) -> list[tuple[int, int]]:
    pairs = [part.split("@") for part in text.split(",")]
    return [(int(tokens), int(depth)) for tokens, depth in pairs]


if __name__ == "__main__":
    main()
