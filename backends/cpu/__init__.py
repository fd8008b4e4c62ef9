"""The CPU backend: Numba kernels called as C functions by native programs, on a pool of threads.

Start reading at registry.py (how a kernel is written), args.py (what it is called with), then simd.py and memory.py
(vectors), elements.py (rows of any float dtype) and transfer.py (rows from one dtype to another), program.py and
threads.py (how a split runs), barriers.py (who waits for whom), fusion.py (which nodes run as one), jit.py (compilation
and the disk cache), workers.py (compilation in parallel). Kernels stand in files named like those of ops/.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from graphrt.backend import Backend, Group, Program, Progress, Split, Support
from graphrt.backends.cpu import host, registry
from graphrt.backends.cpu.jit import native
from graphrt.backends.cpu.registry import Call, kernel
from graphrt.fusion import Readers
from graphrt.kernels import dtypes_in, floats
from graphrt.settings import Settings
from graphrt.tensor import Tensor

__all__ = ["Call", "CpuBackend", "create", "dtypes_in", "floats", "kernel", "native"]


class CpuBackend(Backend):
    """Runs nodes as native programs on the host's processors."""

    name = "cpu"

    def __init__(self, threads: int) -> None:
        self.threads = threads

    @property
    def version(self) -> str:
        """Of the kernels' sources and the processor."""
        sources = sorted(Path(__file__).parent.glob("*.py"))
        digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
        return f"{digest[:16]} {host.here().cpu}"

    def supports(self, node: Tensor) -> Support:
        return registry.supports(node)

    def workspace(self, node: Tensor) -> int:
        record = registry.find(node.op) if node.op is not None else None
        return 0 if record is None else record.workspace_of(node, self.threads)

    def fuse(self, nodes: Sequence[Tensor], readers: Readers) -> list[Group]:
        from graphrt.backends.cpu.fusion import fuse

        return fuse(nodes, readers, self.threads, self.alone)

    def warm_up(self, groups: Sequence[Group], progress: Progress | None = None) -> int:
        from graphrt.backends.cpu import jit, threads
        from graphrt.backends.cpu.program import functions_of

        return jit.load_all([*threads.functions(), *functions_of(groups)], progress or jit.show_progress)

    def compile(self, split: Split) -> Program:
        from graphrt.backends.cpu.program import compile_split
        from graphrt.backends.cpu.threads import pool

        return compile_split(split, pool(self.threads))


def create(settings: Settings) -> CpuBackend:
    """Make the CPU backend with `settings.thread_count` threads."""
    return CpuBackend(settings.thread_count)
