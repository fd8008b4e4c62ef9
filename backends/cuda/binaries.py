"""Compiled kernels on disk: one cubin for each instance and architecture, made when it is first needed."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from graphrt.backends.cuda import nvrtc
from graphrt.backends.cuda.units import Kernel, digest
from graphrt.kept import cache_root

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class KernelFile:
    """A cubin on disk, and the kernel's name in it."""

    path: Path
    symbol: str


def kernel_file(kernel: Kernel, architecture: str) -> KernelFile:
    """The file of a kernel, compiled if there is none, or a damaged one.

    Raises: KernelError with the compiler's words.
    """
    found = _find(kernel, architecture)
    return found if found is not None else _make(kernel, architecture)


def make_all(kernels: Iterable[Kernel], architecture: str, progress: Progress) -> None:
    """Compile the kernels that are not on disk yet, in parallel.

    Raises: KernelError with the compiler's words.
    """
    missing = [kernel for kernel in kernels if _find(kernel, architecture) is None]
    if not missing:
        return
    progress(0, len(missing), str(missing[0]))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = {pool.submit(_make, kernel, architecture): kernel for kernel in missing}
        for done, future in enumerate(as_completed(futures), start=1):
            future.result()
            progress(done, len(missing), str(futures[future]))


def show_progress(done: int, total: int, label: str) -> None:
    """Tell a person at a terminal what is being compiled, on a line that vanishes in the end."""
    if sys.stderr.isatty():
        text = f"compiling CUDA kernels {done}/{total}: {label}" if done < total else ""
        print(f"\r\x1b[2K{text}", end="", file=sys.stderr, flush=True)


def _path(kernel: Kernel, architecture: str) -> Path:
    compiler = ".".join(map(str, nvrtc.version()))
    text = "\n".join([kernel.expression, architecture, compiler, digest(kernel.unit)])
    return cache_root() / "cuda" / f"{kernel.unit}_{hashlib.sha256(text.encode()).hexdigest()[:32]}.cubin"


def _find(kernel: Kernel, architecture: str) -> KernelFile | None:
    """What is on disk; a file beside the cubin holds the symbol and the cubin's digest."""
    path = _path(kernel, architecture)
    with suppress(OSError, ValueError, KeyError):
        told = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if hashlib.sha256(path.read_bytes()).hexdigest() == told["sha256"]:
            return KernelFile(path, told["symbol"])
    return None


def _make(kernel: Kernel, architecture: str) -> KernelFile:
    binary, path = nvrtc.compile_kernels([kernel], architecture), _path(kernel, architecture)
    symbol = binary.symbols[kernel.expression]
    told = json.dumps({"kernel": str(kernel), "symbol": symbol, "sha256": hashlib.sha256(binary.code).hexdigest()})
    path.parent.mkdir(parents=True, exist_ok=True)
    for target, content in ((path, binary.code), (path.with_suffix(".json"), told.encode())):
        partial = target.with_suffix(f"{target.suffix}.{os.getpid()}.{kernel.unit}")
        partial.write_bytes(content)
        os.replace(partial, target)
    return KernelFile(path, symbol)
