"""Decoding over unroped keys beside roped ones: `python -m docs.benchmarks.unroped --threads 2`, from the root.

Whole models of real shapes with few layers and random weights, so that attention has the share of a token that it has
in the whole model. A context of each kind holds the same number of tokens; they decode token by token in turns, and the
median of the ratios of all pairs counts, since a machine's memory bandwidth moves.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

import graphrt
from graphrt.models.batch import Batch
from graphrt.models.context import Context
from graphrt.models.model import Model
from graphrt.models.synth import synthesise

MODELS = {"llama-3-8b": 2, "deepseek-v2-lite": 4}  # preset: layers
DEPTHS = (512, 2048, 8192)
CACHES = ("f16", "q8_0")
KINDS = ("roped", "unroped")
PAIRS = 100  # of tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU backend")
    threads = parser.parse_args().threads
    print("| model | cache |", " | ".join(f"{depth} tokens" for depth in DEPTHS), "|")
    print("|---|---|", "---:|" * len(DEPTHS), sep="")
    with tempfile.TemporaryDirectory() as folder:
        for preset, layers in MODELS.items():
            path = Path(folder) / f"{preset}.gguf"
            synthesise(preset, path, layers=layers, dtype="q8_0")
            for cache in CACHES:
                models = [
                    graphrt.load(path, k_cache=kind, cache_type=cache, n_ctx=2 * max(DEPTHS), threads=threads)
                    for kind in KINDS
                ]
                rates = " | ".join(compare(models, depth) for depth in DEPTHS)
                print(f"| {preset} | {cache} | {rates} |", flush=True)


def compare(models: list[Model], depth: int) -> str:
    """Tokens per second of both kinds at a depth, and the ratio."""
    contexts = [model.new_context() for model in models]
    for context in contexts:
        fill(context, depth)
    seconds = np.empty((PAIRS, len(contexts)))
    for i in range(PAIRS):
        # Which one goes first takes turns too.
        for number, context in list(enumerate(contexts))[:: 1 if i % 2 else -1]:
            batch = Batch.of([1 + i], depth + i)
            start = time.perf_counter()
            context.decode(batch)
            seconds[i, number] = time.perf_counter() - start
    roped, unroped = 1 / np.median(seconds, axis=0)
    return f"{roped:.1f}, {unroped:.1f}, **{np.median(seconds[:, 0] / seconds[:, 1]):.3f}**"


def fill(context: Context, depth: int) -> None:
    """Let a context know of so many tokens without running them: their keys and values are zeros."""
    positions = np.arange(depth, dtype=np.int32)
    taken = context.cells.find(depth)
    context.cells.occupy(taken, positions, np.zeros(depth, np.int32))
    context.cells.settle(taken, positions)


if __name__ == "__main__":
    main()
