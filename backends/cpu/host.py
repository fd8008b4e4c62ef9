"""What the machine can do: its SIMD level, chosen from the features LLVM reports, or forced by a test."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from graphrt.errors import KernelError


@dataclass(frozen=True)
class Level:
    """One way to emit vector code.

    Args:
        name: "avx512", "avx2", "neon" or "generic" (plain LLVM vectors that any machine can run).
        lanes: float32 values in a vector.
        features: the processor features that intrinsics may rely on at this level.
    """

    name: str
    lanes: int
    features: frozenset[str]

    def has(self, feature: str) -> bool:
        return feature in self.features


_NEEDS = {
    "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "f16c", "fma"},
    "avx2": {"avx2", "f16c", "fma"},
    "neon": {"neon"},
    "generic": set[str](),
}
_LANES = {"avx512": 16, "avx2": 8, "neon": 4, "generic": 8}
_forced: list[str] = []


@cache
def cpu_name() -> str:
    import llvmlite.binding as llvm

    return str(llvm.get_host_cpu_name())


@cache
def features() -> frozenset[str]:
    """The features of this processor, in LLVM's spelling."""
    import llvmlite.binding as llvm

    present = {name for name, on in llvm.get_host_cpu_features().items() if on}
    if platform.machine().lower() in ("aarch64", "arm64"):
        present.add("neon")  # every 64-bit Arm has it, whether or not LLVM lists it
    return frozenset(present)


@cache
def levels() -> tuple[str, ...]:
    """The levels this machine can run, best first."""
    return tuple(name for name, needs in _NEEDS.items() if needs <= features())


@cache
def _level(name: str) -> Level:
    if name not in levels():
        raise KernelError(f'[simd] this machine cannot run level "{name}"; it can run {", ".join(levels())}')
    usable = features()
    if name == "avx2":
        usable = frozenset(feature for feature in usable if not feature.startswith("avx512"))
    return Level(name, _LANES[name], frozenset() if name == "generic" else usable)


def level() -> Level:
    """The level that kernels are emitted for: the best one, unless `use_level` forces another."""
    return _level(_forced[-1] if _forced else levels()[0])


@contextmanager
def use_level(name: str) -> Iterator[Level]:
    """Force a level inside a `with` block: programs compiled there use it for good.

    Raises: KernelError if the machine cannot run it.
    """
    _level(name)
    _forced.append(name)
    try:
        yield level()
    finally:
        _forced.pop()
