"""Speed of the CPU's kernels other than matrix products: python -m graphrt.backends.cpu.bench_ops [THREADS].

Decode shapes show what an op costs where there is next to nothing to do, prompt shapes how near a kernel comes to the
limits of the machine: GB/s of everything read and written once, GFLOP/s of attention. The best of several runs counts.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

import graphrt
from graphrt import dtypes, ops
from graphrt.tensor import Tensor

D, F, E, HEADS, WIDTH = 2048, 1408, 64, 16, 192
REPEATS = 7
COPIES = 100
SHORT = 0.02  # seconds of work in one measurement
_names = itertools.count()


def seconds_of(node: Tensor, threads: int) -> float:
    """The shortest time of one such node; short ones are measured in a graph of many."""
    assert node.op is not None
    copies = COPIES if node.size <= 1 << 15 else 1
    nodes = [node.op(*node.srcs, **node.params) for _ in range(copies)]
    program = graphrt.Scheduler(["cpu"], threads=threads).plan(graphrt.Graph(nodes))
    program.execute()
    start = time.perf_counter()
    program.execute()
    rounds = max(1, int(SHORT / (time.perf_counter() - start + 1e-9)))
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(rounds):
            program.execute()
        best = min(best, (time.perf_counter() - start) / rounds)
    return best / copies


def values(*shape: int, dtype: str = "f32") -> Tensor:
    """A leaf of random values."""
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return graphrt.weight(f"x{next(_names)}", dtypes.from_f32(array, dtypes.get(dtype)))


def numbers(*shape: int, upper: int, dtype: type = np.int32) -> Tensor:
    """A leaf of random whole numbers below `upper`."""
    return graphrt.constant(f"x{next(_names)}", np.random.default_rng(0).integers(0, upper, shape).astype(dtype))


def small_ops(tokens: int) -> Iterator[tuple[str, Tensor]]:
    """The ops of a layer, other than products, for so many tokens."""
    x, hidden = values(tokens, D), values(tokens, 6, F)
    heads = values(tokens, HEADS, WIDTH)
    cache = graphrt.state("cache", (4096, 576), "f16")
    yield "add", ops.add(x, x)
    yield "mul by a row", ops.mul(x, values(D))
    yield "rms_norm", ops.rms_norm(x, values(D))
    yield "silu", ops.silu(hidden)
    yield "swiglu", ops.swiglu(hidden, hidden)
    yield "soft_max of experts", ops.soft_max(values(tokens, E))
    yield "top_k of experts", ops.top_k(values(tokens, E), k=6)
    yield "rope of heads", ops.rope(heads[..., 128:], numbers(tokens, upper=10**6))
    yield "get_rows q8_0", ops.get_rows(values(1000, D, dtype="q8_0"), numbers(tokens, upper=1000))
    yield "set_rows f16", ops.set_rows(cache, values(tokens, 576), numbers(tokens, upper=4096))
    yield "weighted_sum", ops.weighted_sum(values(tokens, 6, D), values(tokens, 6))
    yield "cont of swapped axes", ops.cont(heads.permute(1, 0, 2))
    yield "concat of heads", ops.concat(heads[..., :128], values(tokens, HEADS, 64), axis=-1)
    yield "cast to f16", ops.cast(x, dtype="f16")
    yield "cast to q8_0", ops.cast(x, dtype="q8_0")


def attention(tokens: int, heads: int, kv_heads: int, cells: int, widths: tuple[int, int], dtype: str) -> Tensor:
    """Attention of the last `tokens` of `cells` positions; with one kv head, values are the first of the keys."""
    k = values(cells, kv_heads, widths[0], dtype=dtype)
    return ops.attention(
        values(tokens, heads, widths[0]),
        k,
        k[..., : widths[1]] if kv_heads == 1 else values(cells, kv_heads, widths[1], dtype=dtype),
        graphrt.constant("q_pos", np.arange(cells - tokens, cells, dtype=np.int32)),
        graphrt.constant("q_seq", np.zeros(tokens, np.int32)),
        graphrt.constant("cell_pos", np.arange(cells, dtype=np.int32)),
        graphrt.constant("cell_seq", np.ones(cells, np.int64)),
        scale=widths[0] ** -0.5,
    )


ATTENTION = {
    "heads 32/8 of 128": (32, 8, (128, 128)),
    "heads 16/16 of 192/128": (16, 16, (192, 128)),
    "latent, 16 heads": (16, 1, (576, 512)),
    "latent, 128 heads": (128, 1, (576, 512)),
}


def report(label: str, node: Tensor, threads: int, rate: Callable[[float], str]) -> None:
    seconds = seconds_of(node, threads)
    print(f"{label:45} {seconds * 1e6:10.1f} µs {rate(seconds)}", flush=True)


def main(threads: int) -> None:
    for tokens in (1, 512):
        print(f"\n{tokens} token(s), {threads} thread(s)")
        for name, node in small_ops(tokens):
            assert node.op is not None
            nbytes = node.op.cost_of(node).nbytes
            report(name, node, threads, lambda seconds, n=nbytes: f"{n / seconds / 1e9:8.1f} GB/s")
    for tokens, cells in ((1, 4096), (512, 2048)):
        print(f"\nattention, {tokens} token(s) to {cells} cells, {threads} thread(s)")
        for name, (heads, kv_heads, widths) in ATTENTION.items():
            for dtype in ("f16", "q8_0"):
                if tokens * heads * cells * sum(widths) > 2e11:
                    continue
                node = attention(tokens, heads, kv_heads, cells, widths, dtype)
                assert node.op is not None
                cost = node.op.cost_of(node)
                flops = cost.flops * (1 - (tokens - 1) / 2 / cells)  # later cells are hidden from earlier tokens

                def rates(seconds: float, flops: float = flops, nbytes: int = cost.nbytes) -> str:
                    return f"{nbytes / seconds / 1e9:8.1f} GB/s {flops / seconds / 1e9:8.1f} GFLOP/s"

                report(f"{name}, {dtype}", node, threads, rates)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
