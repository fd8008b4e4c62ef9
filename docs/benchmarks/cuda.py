"""Speed of the cuda backend beside the device's limits: `python -m docs.benchmarks.cuda`, in the project's root.

    --dry     tiny shapes on the CPU through the shim: shows that the benchmark runs, and nothing else
    --only    kernels or models

Limits are measured in the same run: bytes by copies on the device, bf16 operations by cuBLAS. Kernels run over more
memory than the second-level cache holds. Models are synthesised on the machine. Results are kept in cuda.json as they
come in, and shown in cuda.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np

import graphrt
from graphrt import Graph, Scheduler, Tensor, dtypes, ops
from graphrt.backends.cuda import CudaBackend, products_many, products_wgmma
from graphrt.backends.cuda.hardware import Hardware
from graphrt.models.batch import Batch
from graphrt.testing import random_blocks

RESULTS = Path(__file__).with_suffix(".json")
WEIGHTS = ("bf16", "q8_0", "q4_0", "q4_k", "q6_k")
REPEATS, RUNS_AT_ONCE = 5, 10
COLUMNS = (1, 8, 16, 64, 512)  # beside a prompt's
CUBLAS, WGMMA, MMA = MAKERS = ("cuBLAS", "gemm_wgmma.cu", "gemm.cu")  # of a prompt's products
SHORT = 16  # tokens before those that are decoded


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
    layers: dict[str, int]
    decode: int
    library: int = products_many.LEAST_OF_LIBRARY
    wgmma: int = products_wgmma.FEWEST_ROWS


REAL = Sizes(1 << 30, 14336, 4096, 2048, 64, 8192, {"mixtral-8x7b": 8, "deepseek-v2-lite": 27}, 64)
DRY = Sizes(1 << 12, 64, 256, 16, 2, 32, {"tiny-mixtral": 1}, 2, 16, 1)


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
        name = f"MLA decoding, {heads} heads, {sizes.sequences} sequences of {sizes.cells} cells"
        yield Case(name, [node], 2 * 576 * count, 2 * heads * (576 + 512) * count)


def seconds_of(run: Callable[[], object], wait: Callable[[], object], at_once: int = RUNS_AT_ONCE) -> float:
    """The median seconds of a run, several begun at once."""
    run()
    wait()
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(at_once):
            run()
        wait()
        found.append((time.perf_counter() - start) / at_once)
    return median(found)


def limits() -> dict[str, float]:
    """Bytes per second of a copy on the device, read and written; bf16 operations per second of cuBLAS."""
    import cupy

    source = cupy.ones(1 << 30, cupy.uint8)
    target = cupy.empty_like(source)
    wait = cupy.cuda.Device().synchronize
    copy = seconds_of(lambda: cupy.copyto(target, source), wait)
    size = 8192
    a, b, c = (cupy.random.randint(0, 1 << 14, (size, size), cupy.uint16) for _ in range(3))
    one, zero = np.float32(1), np.float32(0)
    bf16, handle = 14, cupy.cuda.device.get_cublas_handle()  # CUDA_R_16BF
    cublas, compute = cupy.cuda.cublas, 68  # CUBLAS_COMPUTE_32F

    def multiply() -> None:
        cublas.gemmEx(
            handle, 1, 0, size, size, size, one.ctypes.data, a.data.ptr, bf16, size, b.data.ptr, bf16, size,
            zero.ctypes.data, c.data.ptr, bf16, size, compute, -1,
        )  # fmt: skip

    return {"bytes": 2 * source.nbytes / copy, "flops": 2 * size**3 / seconds_of(multiply, wait)}


class Benchmark:
    """Measures on one device, and keeps what it finds.

    Args:
        backend: of the device.
        sizes: of what is measured.
        ceilings: see `limits`.
        keep: is told of all results after each.
    """

    def __init__(
        self, backend: CudaBackend, sizes: Sizes, ceilings: dict[str, float], keep: Callable[[dict[str, Any]], None]
    ) -> None:
        self.backend, self.sizes, self.ceilings, self._keep = backend, sizes, ceilings, keep
        self.results: dict[str, Any] = {
            "device": backend.device.name,
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
            "limits": ceilings,
            "kernels": {},
            "models": {},
        }

    def kernels(self) -> None:
        """Every case alone."""
        for cases in (product_cases, expert_cases, attention_cases):
            for case in cases(self.sizes):
                if case.by == WGMMA and not self.backend.device.hardware.has_wgmma:
                    continue
                self.results["kernels"][case.name] = self._kernel(case)
                self._keep(self.results)

    def _kernel(self, case: Case) -> dict[str, float]:
        scheduler = Scheduler([self.backend, "cpu"], overrides=[".=cuda"], node_overrides=[".=cuda"])
        with made_by(case.by, self.sizes):
            plan = scheduler.plan(Graph(list(case.nodes)))
        for name in ("x", "q"):
            if any(src is not None and src.name == name for node in case.nodes for src in node.srcs):
                memory = plan.input(name)
                memory[...] = np.random.default_rng(1).standard_normal(memory.shape)
        seconds = seconds_of(plan.execute, self.backend.synchronize, at_once=1 if self.sizes is DRY else RUNS_AT_ONCE)
        share = max(case.nbytes / self.ceilings["bytes"], case.flops / self.ceilings["flops"]) / seconds
        return {"seconds": seconds, "bytes": case.nbytes / seconds, "flops": case.flops / seconds, "share": share}

    def models(self) -> None:
        """Prompts and decoding of whole models in q4_0, all of it on the device and with the experts on the CPU."""
        with tempfile.TemporaryDirectory(prefix="graphrt-cuda-") as folder:
            for preset, layers in self.sizes.layers.items():
                from graphrt.models.synth import synthesise

                path = Path(folder) / f"{preset}.gguf"
                synthesise(preset, path, layers=layers, dtype="q4_0", vocabulary=4096)
                for placement, overrides in (("all", []), ("exps=cpu", ["exps=cpu"])):
                    name = f"{preset}, {layers} layers, q4_0, {placement}"
                    self.results["models"][name] = self._model(path, overrides)
                    self._keep(self.results)
                path.unlink()

    def _model(self, path: Path, overrides: list[str]) -> dict[str, float]:
        length = self.sizes.prompt + self.sizes.decode + 256
        model = graphrt.load(
            path, backends=[self.backend, "cpu"], gpu_layers=999, overrides=overrides, n_ctx=length, n_ubatch=2048
        )
        context = model.new_context()
        tokens = np.random.default_rng(0).integers(0, context.decoder.vocabulary_size, length).tolist()

        def prompt() -> None:
            context.clear()
            context.decode(Batch.of(tokens[: self.sizes.prompt]))

        def decode() -> None:
            context.clear()
            context.decode(Batch.of(tokens[:SHORT]))
            for position in range(SHORT, SHORT + self.sizes.decode):
                context.decode(Batch.of(tokens[position : position + 1], position))

        seconds = {"prompt": seconds_of(prompt, self.backend.synchronize, 1)}
        seconds["decode"] = seconds_of(decode, self.backend.synchronize, 1)
        return {
            "prompt_tokens_per_second": self.sizes.prompt / seconds["prompt"],
            "decode_tokens_per_second": self.sizes.decode / seconds["decode"],
        }


def page(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    ceilings = results["limits"]
    lines = [
        "# Speed on a GPU",
        "",
        f"{results['device']}, {results['date']}. Limits in this run: {ceilings['bytes'] / 1e12:.2f} TB/s of copies",
        f"on the device, {ceilings['flops'] / 1e12:.0f} TFLOP/s of bf16 products by cuBLAS. A share is the least time",
        "that the limits allow over the time taken. `python -m docs.benchmarks.cuda` measures again.",
        "",
        "| kernel | µs | TB/s | TFLOP/s | share |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, found in results["kernels"].items():
        lines.append(
            f"| {name} | {1e6 * found['seconds']:.1f} | {found['bytes'] / 1e12:.2f} | {found['flops'] / 1e12:.1f} | "
            f"{found['share']:.0%} |"
        )
    lines += ["", "| model | prompt, tokens/s | decode, tokens/s |", "|---|---:|---:|"]
    for name, found in results["models"].items():
        lines.append(f"| {name} | {found['prompt_tokens_per_second']:.0f} | {found['decode_tokens_per_second']:.1f} |")
    return "\n".join([*lines, ""])


def keep(results: dict[str, Any]) -> None:
    """Write results and page."""
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(page(results), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="tiny shapes, on the CPU, nothing kept")
    parser.add_argument("--only", choices=("kernels", "models"))
    options = parser.parse_args()
    if options.dry:
        from graphrt.backends.cuda.shim_device import ShimDevice

        device = ShimDevice(checked=True, hardware=Hardware(has_wgmma=True))
        backend, ceilings = CudaBackend(device), {"bytes": 1e9, "flops": 1e9}
    else:
        backend, ceilings = graphrt.backend.create("cuda", graphrt.Settings.from_env()), limits()
        if reason := backend.device.hardware.without_library():
            sys.exit(reason)
    benchmark = Benchmark(backend, DRY if options.dry else REAL, ceilings, (lambda _: None) if options.dry else keep)
    if options.only != "models":
        benchmark.kernels()
    if options.only != "kernels":
        benchmark.models()
    print(page(benchmark.results))


if __name__ == "__main__":
    main()
