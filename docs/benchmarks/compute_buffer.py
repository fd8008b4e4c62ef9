"""Compute buffers over contexts, planned; and the memory that a real run takes beside its plan.

    python -m docs.benchmarks.compute_buffer            # the tables, and compute_buffer.png beside this file
    python -m docs.benchmarks.compute_buffer --run      # a prompt of 32768 tokens through two layers: minutes

Planning needs no weights. The run's weights are mapped from a file, so what it allocates is anonymous memory: the
cache, the compute buffer, and what Python needs for its plans. From the root of the project.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import graphrt
from graphrt.cli import output
from graphrt.models.batch import Batch
from graphrt.models.memory_use import MemoryUse, memory_use
from graphrt.models.synth import describe, synthesise

PRESETS = ("deepseek-v2-lite", "deepseek-v3")
CONTEXTS = tuple(2048 << i for i in range(7))
VARIANTS = ("auto", "flashmla2", "absorbed", "naive", "pp-opt")
UBATCH = 512
# llama.cpp's graph for V2-Lite as ik_llama.cpp's pull request found and left it: bytes a token of context, beside the
# activations; the logits of a whole ubatch are the least.
IK_LLAMA_CPP = {"before": 44288, "after": 27648}
ACTIVATIONS, LEAST = 20 << 20, 204 << 20
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Measured:
    """What a run took, in bytes of anonymous memory, and what the plan says."""

    taken: int
    planned: int

    @property
    def ratio(self) -> float:
        return self.taken / self.planned


def planned(preset: str, n_ctx: int, mla: str = "auto", **options: object) -> MemoryUse:
    """The plan for one context, with two threads."""
    file = describe(preset, dtype="q4_0", layers=options.pop("layers", None))  # type: ignore[arg-type]
    return memory_use(graphrt.load(file, n_ctx=n_ctx, mla=mla, n_ubatch=UBATCH, threads=2, **options).new_context())


# ---- a real run ------------------------------------------------------------------------------------------------------


def anonymous_bytes() -> int:
    """Anonymous memory of this process that is in use (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise OSError("no RssAnon in /proc/self/status")


@contextmanager
def peak_of_anonymous_memory() -> Iterator[list[int]]:
    """Looks every few milliseconds; the list's one element is the peak."""
    peak, done = [anonymous_bytes()], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], anonymous_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
        peak[0] = max(peak[0], anonymous_bytes())


def run(path: Path, n_ctx: int, cache_type: str, threads: int) -> Measured:
    """A prompt that fills the context, in this process; what it takes, from before the context is there to the peak.

    Another, short context runs first, so that kernels and modules are loaded by then.
    """
    options = {"cache_type": cache_type, "threads": threads, "n_ubatch": UBATCH}
    tokens = np.random.default_rng(0).integers(0, 1000, n_ctx)
    warm = graphrt.load(path, n_ctx=2 * UBATCH, **options).new_context()
    warm.decode(Batch.of(tokens[: 2 * UBATCH]))
    model = graphrt.load(path, n_ctx=n_ctx, **options)
    del warm
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is freed would else be used again, and look as if nothing was taken
    before = anonymous_bytes()
    with peak_of_anonymous_memory() as peak:
        context = model.new_context()
        context.decode(Batch.of(tokens))
    use = memory_use(context)
    return Measured(peak[0] - before, use.compute["cpu"] + use.kv_cache["cpu"] + use.cells)


def run_apart(
    preset: str, n_ctx: int, *, layers: int = 2, weight_type: str = "q4_0", cache_type: str = "f16", threads: int = 1
) -> Measured:
    """The same for a synthesised model, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = synthesise(preset, Path(folder) / "model.gguf", layers=layers, dtype=weight_type)
        code = (
            f"from pathlib import Path; from docs.benchmarks.compute_buffer import run;"
            f"found = run(Path({str(path)!r}), {n_ctx}, {cache_type!r}, {threads}); print(found.taken, found.planned)"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return Measured(*map(int, done.stdout.split()))


# ---- tables ----------------------------------------------------------------------------------------------------------


def mebibytes(nbytes: float) -> str:
    return f"{nbytes / (1 << 20):,.1f}"


def table(preset: str) -> dict[str, list[int]]:
    """Compute buffers of every variant, over CONTEXTS."""
    return {mla: [planned(preset, n_ctx, mla).compute["cpu"] for n_ctx in CONTEXTS] for mla in VARIANTS}


def print_table(preset: str, rows: dict[str, list[int]]) -> None:
    print(f"\n{preset}, compute buffer in MiB\n")
    print("| context |", " | ".join(f"{n_ctx:,}" for n_ctx in CONTEXTS), "|")
    print("|---|", " | ".join("---:" for _ in CONTEXTS), "|")
    for name, sizes in rows.items():
        print(f"| {name} |", " | ".join(map(mebibytes, sizes)), "|")


def plot(rows: dict[str, list[int]], path: Path) -> None:
    """V2-Lite's buffers over the context, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    colours = {
        "auto": "#2f6fd0",
        "pp-opt": "#9a6fd0",
        "ik_llama.cpp, before": "#d2601a",
        "ik_llama.cpp, after": "#e8a33d",
    }
    for name, colour in colours.items():
        axes.plot(CONTEXTS, [nbytes / (1 << 20) for nbytes in rows[name]], "o-", color=colour, label=name)
    axes.set(xscale="log", yscale="log", xlabel="context", ylabel="compute buffer, MiB", ylim=(20, None))
    axes.set_xticks(CONTEXTS, [f"{n_ctx:,}" for n_ctx in CONTEXTS])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="run a real prompt and compare its memory with the plan")
    parser.add_argument("--ctx", type=int, default=32768)
    parser.add_argument("--cache-type", default="f16")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.run:
        found = run_apart(PRESETS[0], options.ctx, cache_type=options.cache_type, threads=options.threads)
        print(f"taken {output.size(found.taken)}, planned {output.size(found.planned)}, ratio {found.ratio:.3f}")
        return
    for preset in PRESETS:
        rows = table(preset)
        if preset == PRESETS[0]:
            rows |= {
                f"ik_llama.cpp, {name}": [max(LEAST, ACTIVATIONS + each * n_ctx) for n_ctx in CONTEXTS]
                for name, each in IK_LLAMA_CPP.items()
            }
            plot(rows, Path(__file__).with_suffix(".png"))
        print_table(preset, rows)


if __name__ == "__main__":
    main()
