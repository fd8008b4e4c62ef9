"""Products with many columns beside the peak of int8 dot products: python -m graphrt.backends.cpu.bench_prompt.

For every dtype: 512 columns of a matrix as in V2-Lite and of a large one, and 512 tokens' products with 6 of 64
experts, 48 columns for each on average. A figure is GOP/s and the share of the peak, measured in turns: peaks move on a
machine that others use too, and the best of several runs counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

import graphrt
from graphrt import dtypes, ops
from graphrt.backends.cpu import peaks, threads
from graphrt.backends.cpu.bench_decode import EXPERTS, SHAPES, USED, Run, planned, weights

TOKENS = 512
PEAKS = 20  # measurements of the peak, which are short, to one of a product
MATRICES = {"dense": (2816, 2048), "large": (4096, 14336)}
CASES = (*MATRICES, *(f"experts {name}" for name in SHAPES))
KINDS = tuple(dtype.name for dtype in (*dtypes.FLOATS, *dtypes.QUANTIZED))


def dense(name: str, height: int, width: int, size: int) -> tuple[Run, float]:
    """A product of all tokens with one matrix; and its operations."""
    w = graphrt.weight("w", weights(name, height, width))
    return planned([ops.mul_mat(w, graphrt.input("x", (TOKENS, width)))], size), 2.0 * TOKENS * height * width


def experts(name: str, height: int, width: int, size: int) -> tuple[Run, float]:
    """A product of all tokens with the matrices of USED experts each; and its operations."""
    w = graphrt.weight("w", weights(name, EXPERTS, height, width))
    ids = np.argsort(np.random.default_rng(2).random((TOKENS, EXPERTS)), axis=1)[:, :USED].astype(np.int32)
    x = graphrt.input("x", (TOKENS, 1, width))
    node = ops.mul_mat_id(w, x, graphrt.constant("ids", ids))
    return planned([node], size), 2.0 * TOKENS * USED * height * width


def cases(name: str, size: int) -> Iterator[tuple[str, Run, float]]:
    """The cases of a dtype, those left out whose width is no whole number of its blocks."""
    block = dtypes.get(name).block
    for title, (height, width) in MATRICES.items():
        yield title, *dense(name, height, width, size)
    for title, (height, width) in SHAPES.items():
        if width % block == 0:
            yield f"experts {title}", *experts(name, height, width, size)


def least_seconds(runs: Sequence[Run], rounds: int, clock: Callable[[], float]) -> list[float]:
    """The least time of each run, taken in turns."""
    best = [float("inf")] * len(runs)
    for _ in range(rounds):
        for number, run in enumerate(runs):
            start = clock()
            run()
            best[number] = min(best[number], clock() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=threads.available_cores())
    parser.add_argument("--types", default=",".join(KINDS), help="dtypes, with commas between")
    parser.add_argument("--rounds", type=int, default=9, help="of which the best counts")
    parser.add_argument("--processor-time", action="store_true", help="with one thread: count no time of others")
    options = parser.parse_args()
    clock = time.process_time if options.processor_time else time.perf_counter
    peak = peaks.Peak("int8" if "int8" in peaks.kinds() else "f32", options.threads)
    print(f"{options.threads} threads; GOP/s and share of the int8 peak")
    print(f"{'dtype':8}", *(f"{name:>14}" for name in CASES))
    for name in options.types.split(","):
        found = dict.fromkeys(CASES, "")
        for title, run, operations in cases(name, options.threads):
            seconds, *at_peak = least_seconds([run, *[peak.run] * PEAKS], options.rounds, clock)
            rate = operations / seconds
            found[title] = f"{rate / 1e9:.0f} {rate / (peak.operations / min(at_peak)):.0%}"
        print(f"{name:8}", *(f"{text:>14}" for text in found.values()), flush=True)


if __name__ == "__main__":
    main()
