"""Units: the .cu files under kernels/, and the instances of their templates that the backend launches.

A unit names every instance that it may be asked for, so that each can be compiled for every architecture, and run on
the CPU, before anybody needs it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

from graphrt.errors import KernelError

FOLDER = Path(__file__).parent
KERNELS, SHIM = FOLDER / "kernels", FOLDER / "shim"

C_TYPES = {name: name for name in ("f32", "f16", "bf16", "i64", "i32", "i16", "i8")}  # as common.cuh names dtypes


@dataclass(frozen=True)
class Kernel:
    """One instance of a kernel.

    Args:
        unit: name of the file under kernels/, without its ending.
        expression: as C++ writes it, "rms_norm<f32, 256>".
    """

    unit: str
    expression: str

    def __str__(self) -> str:
        return f"{self.unit}.cu {self.expression}"


class Unit:
    """A .cu file.

    Args:
        name: of the file under kernels/, without its ending.
        instances: all expressions that are launched.
        registers: the most that a thread may take, on any architecture.
        architecture: the only one that it is compiled for, "90a"; None: any.
        folder: where the file is; kernels of other packages include common.cuh all the same.
    """

    def __init__(
        self,
        name: str,
        instances: Iterable[str],
        *,
        registers: int = 128,
        architecture: str | None = None,
        folder: Path = KERNELS,
    ) -> None:
        self.name, self.registers, self.path = name, registers, folder / f"{name}.cu"
        self.architecture = architecture
        self.instances = tuple(dict.fromkeys(instances))
        known = _UNITS.setdefault(name, self)
        if (known.path, known.instances) != (self.path, self.instances):
            raise KernelError(f"[cuda] unit {name}.cu is declared twice: {known.path} and {self.path}")

    def kernel(self, expression: str) -> Kernel:
        """An instance.

        Raises: KernelError if it is not declared.
        """
        if expression not in self.instances:
            raise KernelError(f"[cuda] {self.name}.cu declares no instance {expression}; add it to the unit")
        return Kernel(self.name, expression)


_UNITS: dict[str, Unit] = {}


def all_units() -> dict[str, Unit]:
    """Every unit by name: those of graphrt, and those of other packages that are imported."""
    for path in sorted(FOLDER.glob("*.py")):
        if path.stem not in ("__init__", "cupy_device"):
            import_module(f"graphrt.backends.cuda.{path.stem}")
    return dict(sorted(_UNITS.items()))


def unit(name: str) -> Unit:
    """A unit by its name, which some kernel has."""
    return _UNITS[name]


@cache
def digest(name: str, shim: bool = False) -> str:
    """Changes whenever the unit's code may: of the file and of everything that kernels include."""
    sources = [unit(name).path, *sorted(KERNELS.glob("*.cuh"))]
    if shim:
        sources += sorted(SHIM.glob("*.hpp"))
    return hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()[:32]
