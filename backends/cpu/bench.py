"""Speed of the CPU's matrix products beside the limits of the machine: python -m graphrt.backends.cpu.bench [THREADS].

Decode shapes (1 column) are bound by reading the weights: GB/s, beside the speed of only reading memory. Prompt shapes
(512 columns) are bound by arithmetic: GFLOP/s. Numbers move on a machine that others use too: the best run counts.
"""

from __future__ import annotations

import sys
import time

import numpy as np

import graphrt
from graphrt import dtypes, ops
from graphrt.backends.cpu import jit, threads
from graphrt.backends.cpu.args import claim, word
from graphrt.backends.cpu.memory import load_f32, store_f32
from graphrt.backends.cpu.simd import splat
from graphrt.testing import random_blocks

ROWS, WIDTH = 2816, 2048
MEMORY = 256 << 20  # bytes to read: more than any cache
KINDS = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_k", "q6_k", "q5_k", "iq4_xs", "mxfp4")


def read_memory() -> jit.Kernel:
    """Native: read the memory at word 0, word 1 bytes, and do next to nothing with it."""

    def run(args, ith, nth):
        chunk = 1 << 18
        a = splat(np.float32(0), 16)
        b, c, d = a, a, a
        item = claim(word(args, 2), 1)
        while item * chunk < word(args, 1):
            first = word(args, 0) + item * chunk
            for at in range(first, first + chunk, 256):  # four sums: to wait for one would take longer than to read
                a, b = a + load_f32(at, "f32", 16), b + load_f32(at + 64, "f32", 16)
                c, d = c + load_f32(at + 128, "f32", 16), d + load_f32(at + 192, "f32", 16)
            item = claim(word(args, 2), 1)
        store_f32(word(args, 3) + 64 * ith, "f32", (a + b) + (c + d))

    return run


def best_seconds(run: object, repeats: int = 7) -> float:
    """The shortest of several runs."""
    assert callable(run)
    run()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


def read_bandwidth(size: int) -> float:
    """GB/s of only reading memory."""
    memory, result = np.ones(MEMORY // 4, np.float32), np.zeros(16 * size, np.float32)
    pool = threads.pool(size)
    words = np.array([memory.ctypes.data, memory.nbytes, pool.counter_address, result.ctypes.data], np.int64)
    calls = np.array([jit.native(read_memory).address, words.ctypes.data], np.int64)
    return memory.nbytes / best_seconds(lambda: pool.run(calls.ctypes.data, 1)) / 1e9


def weights(name: str, rows: int) -> np.ndarray:
    dtype, generator = dtypes.get(name), np.random.default_rng(0)
    if dtype.is_quantized:
        return random_blocks(generator, (rows, WIDTH), dtype)
    return generator.standard_normal((rows, WIDTH), np.float32).astype(dtype.numpy)


def product_seconds(name: str, columns: int, size: int) -> tuple[float, int]:
    """Seconds of one product, over enough matrices to fill MEMORY where it is a decode; and the bytes of one matrix."""
    one = weights(name, ROWS)
    copies = max(1, MEMORY // one.nbytes) if columns == 1 else 1
    matrices = [graphrt.weight(f"w{i}", one.copy()) for i in range(copies)]
    x = graphrt.input("x", (columns, WIDTH))
    plan = graphrt.Scheduler(["cpu"], threads=size).plan(graphrt.Graph([ops.mul_mat(w, x) for w in matrices]))
    plan.input("x")[...] = np.random.default_rng(1).standard_normal((columns, WIDTH))
    return best_seconds(plan.execute) / copies, one.nbytes


def main() -> None:
    size = int(sys.argv[1]) if len(sys.argv) > 1 else threads.available_cores()
    print(f"{size} threads; reading memory: {read_bandwidth(size):.1f} GB/s")
    print(f"{'dtype':8} {'1 column':>14} {'512 columns':>16}")
    for name in KINDS:
        decode, nbytes = product_seconds(name, 1, size)
        prompt, _ = product_seconds(name, 512, size)
        print(f"{name:8} {nbytes / decode / 1e9:9.1f} GB/s {2 * 512 * ROWS * WIDTH / prompt / 1e9:8.0f} GFLOP/s")


if __name__ == "__main__":
    main()
