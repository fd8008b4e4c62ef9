"""Speed of the cuda backend beside the device's limits: `python -m docs.benchmarks.cuda`, in the project's root.

    --dry     tiny shapes on the CPU through the shim: shows that the benchmark runs, and nothing else
    --only    kernels or models

Limits are measured in the same run: bytes by copies on the device, bf16 operations by cuBLAS. Kernels run over more
memory than the second-level cache holds. Models have random weights, made on the device. Results are kept in cuda.json
as they come in, and shown in cuda.md, beside what is wanted of an H200.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import graphrt
from docs.benchmarks import cuda_models
from docs.benchmarks.cuda_kernels import WGMMA, Case, Sizes, cases, planned
from docs.benchmarks.cuda_limits import RUNS_AT_ONCE, gaps, limits, seconds_of
from docs.benchmarks.cuda_models import PLACEMENTS, SUBJECTS, Subject, point
from docs.benchmarks.cuda_targets import CELLS, DEVICE, SEQUENCES, targets
from graphrt.backends.cuda import CudaBackend
from graphrt.backends.cuda.hardware import Hardware

RESULTS = Path(__file__).with_suffix(".json")
REAL = Sizes(1 << 30, 14336, 4096, 2048, SEQUENCES, CELLS)
DRY = Sizes(1 << 12, 64, 256, 16, 2, 32, 16, 1)
DRY_SUBJECTS = (Subject("tiny-mixtral", 1, 400, 16, 2),)
Results = dict[str, Any]


class Benchmark:
    """Measures on one device, and keeps what it finds.

    Args:
        backend: of the device.
        is_dry: whether over tiny shapes.
        ceilings: see `limits`.
        keep: is told of all results after each.
    """

    def __init__(
        self, backend: CudaBackend, is_dry: bool, ceilings: dict[str, float], keep: Callable[[Results], None]
    ) -> None:
        self.backend, self.is_dry, self.ceilings, self._keep = backend, is_dry, ceilings, keep
        self.results: Results = {
            "device": backend.device.name,
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
            "limits": ceilings,
            "gaps": {},
            "kernels": {},
            "models": {},
        }

    def kernels(self) -> None:
        """The gaps between kernels, and every case alone."""
        self.results["gaps"] = gaps(self.backend)
        sizes = DRY if self.is_dry else REAL
        for case in cases(sizes):
            if case.by == WGMMA and not self.backend.device.hardware.has_wgmma:
                continue
            self.results["kernels"][case.name] = self._kernel(case, sizes)
            self._keep(self.results)

    def _kernel(self, case: Case, sizes: Sizes) -> dict[str, float]:
        run = planned(case, self.backend, sizes).execute
        seconds = seconds_of(run, self.backend.synchronize, at_once=1 if self.is_dry else RUNS_AT_ONCE)
        share = max(case.nbytes / self.ceilings["bytes"], case.flops / self.ceilings["flops"]) / seconds
        return {"seconds": seconds, "bytes": case.nbytes / seconds, "flops": case.flops / seconds, "share": share}

    def models(self) -> None:
        """Prompts and decoding of whole models, all of it on the device and with the experts on the CPU."""
        for subject in DRY_SUBJECTS if self.is_dry else SUBJECTS:
            file = subject.file(self.backend.device)
            for placement in PLACEMENTS:
                found = cuda_models.measure(self.backend, subject, file, placement, self.ceilings)
                self.results["models"][point(subject, placement)] = found
                self._keep(self.results)


def page(results: Results) -> str:
    """The results as Markdown."""
    ceilings = results["limits"]
    lines = [
        "# Speed on a GPU",
        "",
        f"{results['device']}, {results['date']}. Limits in this run: {ceilings['bytes'] / 1e12:.2f} TB/s of copies",
        f"on the device, {ceilings['flops'] / 1e12:.0f} TFLOP/s of bf16 products by cuBLAS. A share is the least time",
        "that the limits allow over the time taken. `python -m docs.benchmarks.cuda` measures again.",
        "",
        f"| wanted of an {DEVICE} | | measured | |",
        "|---|---|---|---|",
        *(target.row() for target in targets(results)),
        "",
        *(f"A kernel that does next to nothing, {way}: {1e6 * each:.2f} µs." for way, each in results["gaps"].items()),
        "",
        "| kernel | µs | TB/s | TFLOP/s | share |",
        "|---|---:|---:|---:|---:|",
        *(_kernel_row(name, found) for name, found in results["kernels"].items()),
        "",
        "| model | prompt, tokens/s | share | decode, tokens/s | share | the host's µs in a step |",
        "|---|---:|---:|---:|---:|---:|",
        *(_model_row(name, found) for name, found in results["models"].items()),
        "",
    ]
    return "\n".join(lines)


def _kernel_row(name: str, found: dict[str, float]) -> str:
    rates = f"{found['bytes'] / 1e12:.2f} | {found['flops'] / 1e12:.1f} | {found['share']:.0%}"
    return f"| {name} | {1e6 * found['seconds']:.1f} | {rates} |"


def _model_row(name: str, found: dict[str, float]) -> str:
    def shown(field: str, form: str, scale: float = 1.0) -> str:
        return form.format(scale * found[field]) if field in found else "–"

    columns: Sequence[str] = (
        shown("prompt_tokens_per_second", "{:.0f}"),
        shown("prompt_share", "{:.0%}"),
        shown("decode_tokens_per_second", "{:.1f}"),
        shown("decode_share", "{:.0%}"),
        shown("host_seconds_per_step", "{:.0f}", 1e6),
    )
    return f"| {name} | {' | '.join(columns)} |"


def keep(results: Results) -> None:
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
    benchmark = Benchmark(backend, options.dry, ceilings, (lambda _: None) if options.dry else keep)
    if options.only != "models":
        benchmark.kernels()
    if options.only != "kernels":
        benchmark.models()
    print(page(benchmark.results))


if __name__ == "__main__":
    main()
