"""What machines can do: this one's SIMD level, from the features LLVM reports, or a level or machine that is forced."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from graphrt.errors import KernelError

_NEEDS = {
    "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "f16c", "fma"},
    "avx2": {"avx2", "f16c", "fma"},
    "neon": {"neon"},
    "generic": set[str](),
}
_LANES = {"avx512": 16, "avx2": 8, "neon": 4, "generic": 8}


@dataclass(frozen=True)
class Machine:
    """A kind of processor and system that code is made for, in LLVM's words.

    Args:
        triple: "aarch64-unknown-linux-gnu".
        cpu: "neoverse-n1".
        features: what the processor has, those that are a matter of course for this cpu included: "neon", "dotprod" …
    """

    triple: str
    cpu: str
    features: frozenset[str]

    @property
    def levels(self) -> tuple[str, ...]:
        """The levels it can run, best first."""
        return tuple(name for name, needs in _NEEDS.items() if needs <= self.features)

    @property
    def runs_here(self) -> bool:
        """Whether this process can run code made for it."""
        return self.triple == here().triple and self.features <= here().features


@dataclass(frozen=True)
class Level:
    """One way to emit vector code.

    Args:
        name: "avx512", "avx2", "neon" or "generic" (plain LLVM vectors that any machine can run).
        lanes: float32 values in a vector.
        features: the processor features that intrinsics may rely on at this level.
        machine: that the code is for.
    """

    name: str
    lanes: int
    features: frozenset[str]
    machine: Machine

    def has(self, feature: str) -> bool:
        return feature in self.features


_forced: list[Level] = []


@cache
def here() -> Machine:
    """This machine."""
    import llvmlite.binding as llvm

    present = {name for name, on in llvm.get_host_cpu_features().items() if on}
    if platform.machine().lower() in ("aarch64", "arm64"):
        present |= _arm_features()
    return Machine(str(llvm.get_process_triple()), str(llvm.get_host_cpu_name()), frozenset(present))


def _arm_features() -> set[str]:
    """What LLVM need not list of a 64-bit Arm processor."""
    if platform.system() == "Darwin":
        return {"neon", "dotprod", "fullfp16"}  # all Apple silicon
    try:
        listed = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        listed = set()
    names = {"asimddp": "dotprod", "asimdhp": "fullfp16"}
    return {"neon"} | {feature for name, feature in names.items() if name in listed}


@cache
def available_cores() -> int:
    """Processors that this process may run on."""
    affinity: Any = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def levels() -> tuple[str, ...]:
    """The levels this machine can run, best first."""
    return here().levels


@cache
def _level(name: str, machine: Machine) -> Level:
    if name not in machine.levels:
        whose = "this machine" if machine is here() else machine.cpu
        raise KernelError(f'[simd] {whose} cannot run level "{name}"; it can run {", ".join(machine.levels)}')
    usable = machine.features
    if name == "avx2":
        usable = frozenset(feature for feature in usable if not feature.startswith("avx512"))
    return Level(name, _LANES[name], frozenset() if name == "generic" else usable, machine)


def level() -> Level:
    """The level that kernels are emitted for: this machine's best one, unless `use_level` forces another."""
    return _forced[-1] if _forced else _level(levels()[0], here())


@contextmanager
def use_level(name: str, machine: Machine | None = None) -> Iterator[Level]:
    """Force a level inside a `with` block: programs compiled there use it for good.

    Args:
        machine: one that is not this; what is made for it can be read (Native.assembly), and run if it runs here.
    Raises: KernelError if the machine cannot run the level.
    """
    _forced.append(_level(name, machine or here()))
    try:
        yield _forced[-1]
    finally:
        _forced.pop()
