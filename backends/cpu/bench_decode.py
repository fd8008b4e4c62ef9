"""Products with few columns beside the speed of only reading memory: python -m graphrt.backends.cpu.bench_decode.

For every dtype: a matrix in the processor's second-level cache and one column (what the kernel could do), matrices in
memory and 1 … 16 columns, and one token's products with 6 of 64 experts. Each figure is a share of the read bandwidth
measured in the same seconds, in turns: bandwidths move on a machine that others use too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import numpy as np

import graphrt
from graphrt import dtypes, ops
from graphrt.backends.cpu import jit, threads
from graphrt.backends.cpu.bench import read_memory
from graphrt.testing import random_blocks

KINDS = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_k", "q5_k", "q6_k", "q5_0", "q4_1", "q5_1", "q2_k", "q3_k")
KINDS_OF_LEVELS = ("iq4_nl", "iq4_xs", "mxfp4")
COLUMNS = (1, 2, 3, 4, 6, 8, 12, 16)
MEMORY = 256 << 20  # bytes to read: more than any cache
EXPERTS, USED, TOKENS = 64, 6, 8
SHAPES = {"up": (1408, 2048), "down": (2048, 1408)}

Run = Callable[[], None]


def weights(name: str, *shape: int) -> np.ndarray:
    dtype, generator = dtypes.get(name), np.random.default_rng(0)
    if dtype.is_quantized:
        return random_blocks(generator, shape, dtype)
    return generator.standard_normal(shape, np.float32).astype(dtype.numpy)


def planned(nodes: Sequence[graphrt.Tensor], size: int) -> Run:
    """A run of the nodes, one after the other."""
    plan = graphrt.Scheduler(["cpu"], threads=size).plan(graphrt.Graph(list(nodes)))
    rng = np.random.default_rng(1)
    for name in {leaf.name for node in nodes for leaf in node.srcs if leaf is not None and leaf.name.startswith("x")}:
        memory = plan.input(name)
        memory[...] = rng.standard_normal(memory.shape)
    return plan.execute


class Reading:
    """Reads MEMORY bytes with `size` threads, and does nothing with them."""

    def __init__(self, size: int) -> None:
        self.memory, self.result = np.ones(MEMORY // 4, np.float32), np.zeros(16 * size, np.float32)
        self.pool = threads.pool(size)
        addresses = [self.memory.ctypes.data, MEMORY, self.pool.counter_address, self.result.ctypes.data]
        self.words = np.array(addresses, np.int64)
        self.calls = np.array([jit.native(read_memory).address, self.words.ctypes.data], np.int64)

    def __call__(self) -> None:
        self.pool.run(self.calls.ctypes.data, 1)


def in_turns(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """The least seconds of each run, taken one after the other, round after round."""
    best = dict.fromkeys(runs, float("inf"))
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def products(name: str, height: int, width: int, columns: Sequence[int], size: int) -> tuple[dict[str, Run], int]:
    """Runs over matrices that fill MEMORY, by columns; and the bytes of them all."""
    one = weights(name, height, width)
    matrices = [graphrt.weight(f"w{i}", one.copy()) for i in range(max(1, MEMORY // one.nbytes))]
    runs = {}
    for count in columns:
        x = graphrt.input("x", (count, width))
        runs[f"{count} columns"] = planned([ops.mul_mat(w, x) for w in matrices], size)
    return runs, len(matrices) * one.nbytes


def cached(name: str, size: int) -> tuple[Run, int]:
    """A run over one matrix that stays in the second-level cache; and the bytes read."""
    rows = 768 * 1024 // dtypes.get(name).row_bytes(2048) // dtypes.ROWS * dtypes.ROWS
    one = graphrt.weight("w", weights(name, rows, 2048))
    x = graphrt.input("x", (1, 2048))
    return planned([ops.mul_mat(one, x) for _ in range(50)], size), 50 * one.nbytes


def experts(name: str, size: int) -> tuple[dict[str, Run], dict[str, int]]:
    """Runs of several tokens' products with the experts that each uses, and the bytes that they read."""
    runs, nbytes, rng = {}, {}, np.random.default_rng(2)
    for label, (height, width) in SHAPES.items():
        if width % dtypes.get(name).block:
            continue
        w = graphrt.weight(label, weights(name, EXPERTS, height, width))
        x, nodes = graphrt.input("x", (1, 1 if label == "up" else USED, width)), []
        for token in range(TOKENS):
            ids = np.sort(rng.choice(EXPERTS, USED, replace=False)).astype(np.int32)
            nodes.append(ops.mul_mat_id(w, x, graphrt.constant(f"ids{token}", ids[None])))
        runs[label], nbytes[label] = planned(nodes, size), w.nbytes * USED * TOKENS // EXPERTS
    return runs, nbytes


def measure(name: str, size: int, rounds: int, with_experts: bool) -> str:
    """One line of the table."""
    runs, nbytes = products(name, 2816, 2048, COLUMNS, size)
    in_cache, cache_bytes = cached(name, 1)
    expert_runs, expert_bytes = experts(name, size) if with_experts else ({}, {})
    best = in_turns({"read": Reading(size), **runs, "cache": in_cache, **expert_runs}, rounds)
    limit = MEMORY / best["read"]
    line = f"{name:10} {limit / 1e9:5.1f} {cache_bytes / best['cache'] / limit * size:6.2f} "
    per_token = [nbytes / best[f"{count} columns"] / limit * count for count in COLUMNS]
    line += " ".join(f"{share:6.2f}" for share in per_token)
    return line + "".join(f"  {label} {expert_bytes[label] / best[label] / limit:.2f}" for label in expert_runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=[*KINDS, *KINDS_OF_LEVELS, *dtypes.INTERLEAVED])
    parser.add_argument("-t", "--threads", type=int, default=threads.available_cores())
    parser.add_argument("-r", "--rounds", type=int, default=15)
    parser.add_argument("--no-experts", action="store_true")
    options = parser.parse_args()
    print(f"{options.threads} threads. Shares of the read bandwidth; of columns: times their number, so a share that")
    print("falls from one number of columns to a greater one means that a token takes longer.")
    print(f"{'dtype':10} {'GB/s':>5} {'cache':>6} " + " ".join(f"{count:6}" for count in COLUMNS) + "  experts")
    for name in options.kinds:
        print(measure(name, options.threads, options.rounds, not options.no_experts), flush=True)


if __name__ == "__main__":
    main()
