"""The kernels that are measured on a GPU: products by few columns and by a prompt's, experts', and MLA decoding."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np

import graphrt
from docs.benchmarks.cuda_targets import mla_case
from graphrt import Graph, Plan, Scheduler, Tensor, dtypes, ops
from graphrt.backends.cuda import CudaBackend, products_many, products_wgmma
from graphrt.testing import random_blocks

WEIGHTS = ("bf16", "q8_0", "q4_0", "q4_k", "q6_k")
COLUMNS = (1, 8, 16, 64, 512)  # beside a prompt's
CUBLAS, WGMMA, MMA = MAKERS = ("cuBLAS", "gemm_wgmma.cu", "gemm.cu")  # of a prompt's products


@dataclass(frozen=True)
class Sizes:
    """What is measured: bytes of weights in turn, and the shapes of a matrix, of a prompt and of a context.

    `library` is from where on products are left to cuBLAS, `wgmma` from where on gemm_wgmma.cu can make them.
    """

    memory: int
    height: int
    width: int
    prompt: int
    sequences: int
    cells: int
    library: int = products_many.LEAST_OF_LIBRARY
    wgmma: int = products_wgmma.FEWEST_ROWS


@dataclass(frozen=True)
class Case:
    """Nodes that run one after the other, the bytes that all of them must move, and their operations.

    `by` is who makes its products, one of MAKERS; "": who is thought the fastest.
    """

    name: str
    nodes: Sequence[Tensor]
    nbytes: float
    flops: float
    by: str = ""


@contextmanager
def made_by(maker: str, sizes: Sizes) -> Iterator[None]:
    """Leave a prompt's products to one of MAKERS."""
    library = sizes.library if maker in ("", CUBLAS) else sys.maxsize
    with ExitStack() as stack:
        stack.enter_context(patch.object(products_many, "LEAST_OF_LIBRARY", library))
        if maker:
            wgmma = sizes.wgmma if maker == WGMMA else sys.maxsize
            stack.enter_context(patch.object(products_wgmma, "FEWEST_ROWS", wgmma))
            stack.enter_context(patch.object(products_wgmma, "FEWEST_ROWS_OF_EXPERT", wgmma))
        yield


def matrix(name: str, height: int, width: int) -> np.ndarray:
    """Random weights of a dtype."""
    dtype, generator = dtypes.get(name), np.random.default_rng(0)
    if dtype.is_quantized:
        return random_blocks(generator, (height, width), dtype)
    return generator.standard_normal((height, width), np.float32).astype(dtype.numpy)


def product_cases(sizes: Sizes) -> Iterator[Case]:
    """Products with few columns over matrices that fill the memory, and with a prompt's."""
    for name in WEIGHTS:
        one = matrix(name, sizes.height, sizes.width)
        # Copies: weights over the same bytes would be kept once, and then be read from the second-level cache.
        weights = [graphrt.weight(f"w{i}", one.copy()) for i in range(max(1, sizes.memory // one.nbytes))]
        for columns in COLUMNS:
            x = graphrt.input("x", (columns, sizes.width))
            nodes = [ops.mul_mat(w, x) for w in weights]
            label = f"mul_mat {name}, {columns} column{'s' if columns > 1 else ''}"
            flops = 2 * columns * sizes.height * sizes.width * len(weights)
            yield Case(label, nodes, one.nbytes * len(weights), flops)
        x = graphrt.input("x", (sizes.prompt, sizes.width))
        flops = 2 * sizes.prompt * sizes.height * sizes.width
        label, nodes = f"mul_mat {name}, {sizes.prompt} columns", [ops.mul_mat(weights[0], x)]
        for by in MAKERS:
            yield Case(f"{label}, by {by}", nodes, one.nbytes, flops, by)


def expert_cases(sizes: Sizes) -> Iterator[Case]:
    """A prompt's products with two of eight large experts, and with six of 64 small ones."""
    rng = np.random.default_rng(2)
    for experts, used, height, width in (
        (8, 2, sizes.height, sizes.width),
        (64, 6, sizes.height // 8, sizes.width // 2),
    ):
        one = matrix("q4_0", height * experts, width)
        w = graphrt.weight("w", one.reshape(experts, height, -1))
        ids = np.stack([rng.permutation(experts)[:used] for _ in range(sizes.prompt)]).astype(np.int32)
        x = graphrt.input("x", (sizes.prompt, 1, width))
        flops = 2 * sizes.prompt * used * height * width
        name = f"mul_mat_id q4_0, {used} of {experts} experts of {height} x {width}, {sizes.prompt} tokens"
        node = ops.mul_mat_id(w, x, graphrt.constant("ids", ids))
        for by in MAKERS[1:]:
            yield Case(f"{name}, by {by}", [node], one.nbytes, flops, by)


def attention_cases(sizes: Sizes) -> Iterator[Case]:
    """MLA decoding of many sequences over a latent cache, with 16 heads and with 128."""
    count = sizes.sequences * sizes.cells
    cache = graphrt.weight("cache", np.ones((count, 1, 576), np.float16))
    positions = graphrt.constant("cell_pos", np.tile(np.arange(sizes.cells, dtype=np.int32), sizes.sequences))
    owners = np.repeat(np.int64(1) << np.arange(sizes.sequences, dtype=np.int64), sizes.cells)
    sequences = graphrt.constant("cell_seq", owners)
    q_pos = graphrt.constant("q_pos", np.full(sizes.sequences, sizes.cells - 1, np.int32))
    q_seq = graphrt.constant("q_seq", np.arange(sizes.sequences, dtype=np.int32))
    for heads in (16, 128):
        q = graphrt.input("q", (sizes.sequences, heads, 576))
        node = ops.attention(q, cache, cache[:, :, :512], q_pos, q_seq, positions, sequences, scale=576**-0.5)
        name = mla_case(heads, sizes.sequences, sizes.cells)
        yield Case(name, [node], 2 * 576 * count, 2 * heads * (576 + 512) * count)


def cases(sizes: Sizes) -> Iterator[Case]:
    """All of them."""
    yield from product_cases(sizes)
    yield from expert_cases(sizes)
    yield from attention_cases(sizes)


def planned(case: Case, backend: CudaBackend, sizes: Sizes) -> Plan:
    """A case's plan, with random inputs."""
    scheduler = Scheduler([backend, "cpu"], overrides=[".=cuda"], node_overrides=[".=cuda"])
    with made_by(case.by, sizes):
        plan = scheduler.plan(Graph(list(case.nodes)))
    for name in plan.graph.inputs:
        memory = plan.input(name)
        memory[...] = np.random.default_rng(1).standard_normal(memory.shape)
    return plan
