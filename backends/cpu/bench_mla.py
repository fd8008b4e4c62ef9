"""Speed of attention to DeepSeek's latents, both ways: python -m graphrt.backends.cpu.bench_mla [THREADS].

Heads are those of V2-Lite. `expanded` is mla_attention, `absorbed` is attention to the latents without the two products
that bring queries to their space and results back. The peak is that of products of tiles which stay in registers.
"""

from __future__ import annotations

import sys

import numpy as np

import graphrt
from graphrt import ops
from graphrt.backends.cpu import bf16, jit, threads
from graphrt.backends.cpu.args import word
from graphrt.backends.cpu.bench import best_seconds
from graphrt.backends.cpu.bench_ops import attention, values
from graphrt.backends.cpu.mla_layout import Layout
from graphrt.backends.cpu.tile import multiply_tile, tile
from graphrt.tensor import Tensor

HEADS, NOPE, ROPE, VALUE, RANK = 16, 128, 64, 128, 512
ROUNDS = 3
DEPTH, REPEATS = 64, 20_000  # of a tile whose operands stay in the first-level cache


def multiply_again(lanes: int, vectors: int, columns: int, dtype: str) -> jit.Kernel:
    """Native: the product of the panel at word 0 with the columns at word 1, to word 2 and on, many times."""
    pitch, x_pitch = 4 * lanes * vectors, 4 * DEPTH + 64

    def run(args, ith, nth):
        panel, x, y = word(args, 0), word(args, 1), word(args, 2) + ith * pitch * columns
        for _ in range(REPEATS):
            multiply_tile(panel, pitch, x, 4, x_pitch, DEPTH, y, pitch, dtype, lanes, vectors, columns, False)

    return run


def peak(dtype: str, size: int) -> float:
    """GFLOP/s of products of tiles, of float32 or "pairs" of bfloat16."""
    shape, pool = tile(), threads.pool(size)
    operands = [np.zeros(DEPTH * 256, np.float32) for _ in range(2)]
    target = np.zeros(size * shape.rows * shape.columns, np.float32)
    words = np.array([each.ctypes.data for each in (*operands, target)], np.int64)
    function = jit.native(multiply_again, shape.lanes, shape.vectors, shape.columns, dtype)
    calls = np.array([function.address, words.ctypes.data], np.int64)
    seconds = best_seconds(lambda: pool.run(calls.ctypes.data, 1))
    flops = 2 * size * REPEATS * DEPTH * shape.rows * shape.columns * (2 if dtype == "pairs" else 1)
    return flops / seconds / 1e9


def expanded(tokens: int, cells: int, dtype: str) -> Tensor:
    """mla_attention of the last `tokens` of `cells` positions, with weights in q8_0."""
    both = values(HEADS, NOPE + VALUE, RANK, dtype="q8_0")
    return ops.mla_attention(
        values(tokens, HEADS, NOPE + ROPE),
        values(cells, 1, RANK + ROPE, dtype=dtype),
        both[:, :NOPE],
        both[:, NOPE:],
        graphrt.constant("q_pos", np.arange(cells - tokens, cells, dtype=np.int32)),
        graphrt.constant("q_seq", np.zeros(tokens, np.int32)),
        graphrt.constant("cell_pos", np.arange(cells, dtype=np.int32)),
        graphrt.constant("cell_seq", np.ones(cells, np.int64)),
        scale=(NOPE + ROPE) ** -0.5,
    )


def seconds_of(node: Tensor, size: int) -> float:
    """The shortest time of a node."""
    program = graphrt.Scheduler(["cpu"], threads=size).plan(graphrt.Graph([node]))
    return best_seconds(program.execute, ROUNDS)


def report(tokens: int, cells: int, dtype: str, size: int, peaks: dict[str, float]) -> None:
    """A line of the table."""
    pairs = tokens * cells - tokens * (tokens - 1) // 2  # of a token and a cell that it sees
    node = expanded(tokens, cells, dtype)
    seconds = seconds_of(node, size)
    rate = 2e-9 * HEADS * (cells * RANK * (NOPE + VALUE) + pairs * (NOPE + ROPE + VALUE)) / seconds
    share = rate / peaks["pairs" if Layout(node).pairs else "f32"]
    other = seconds_of(attention(tokens, HEADS, 1, cells, (RANK + ROPE, RANK), dtype), size)
    other_rate = 2e-9 * HEADS * pairs * (2 * RANK + ROPE) / other
    print(f"{dtype:6}{tokens:6}{cells:7}", end="")
    print(f"{seconds * 1e3:9.1f} ms{rate:9.0f} GFLOP/s{share:6.0%} of peak", end="")
    print(f"{other * 1e3:9.1f} ms{other_rate:9.0f} GFLOP/s", flush=True)


def main(size: int) -> None:
    peaks = {"f32": peak("f32", size)}
    if bf16.has_pairs():
        peaks["pairs"] = peak("pairs", size)
    print(f"{size} thread(s), peak in GFLOP/s: " + ", ".join(f"{name} {rate:.0f}" for name, rate in peaks.items()))
    print(f"{'cache':6}{'tokens':>6}{'cells':>7}{'expanded':>12}{'absorbed':>44}")
    for dtype in ("f32", "f16", "q8_0"):
        for tokens, cells in ((1, 4096), (16, 4096), (64, 4096), (170, 4096), (512, 512), (512, 4096), (512, 16384)):
            report(tokens, cells, dtype, size, peaks)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
