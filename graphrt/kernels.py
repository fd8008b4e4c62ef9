"""Kernels by op: where a backend keeps what it has for each, and finds it, and how it says which nodes they take."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Generic, Protocol, TypeVar

from graphrt.backend import YES, Support
from graphrt.errors import KernelError
from graphrt.op import Op
from graphrt.tensor import Tensor

MAX_RANK = 4
Takes = Callable[[Tensor], Support]


class Record(Protocol):
    """What a backend has for one op."""

    @property
    def op(self) -> Op: ...

    @property
    def takes(self) -> Takes:
        """Says of a node whether the kernels take it, and if not, why and what would help."""


R = TypeVar("R", bound=Record)


class Kernels(Generic[R]):
    """A backend's kernels.

    Args:
        backend: its name; the kernels of graphrt/ops/NAME.py are looked for in graphrt/backends/BACKEND/NAME.py.
        remedy: what helps where there is no kernel.
        interleaved: whether kernels of ops that may have interleaved weights take them.
    """

    def __init__(self, backend: str, remedy: str, *, interleaved: bool = False) -> None:
        self._backend, self._remedy, self._interleaved = backend, remedy, interleaved
        self._records: dict[str, R] = {}
        self._origins: dict[str, str] = {}

    def add(self, record: R, function: Callable[..., object]) -> R:
        """Keep a record; the same function defined once more (a module reloaded) replaces its own.

        Raises: KernelError if another function is registered for the op.
        """
        name, origin = record.op.name, f"{function.__module__}.{function.__qualname__}"
        if self._origins.setdefault(name, origin) != origin:
            known = self._origins[name]
            raise KernelError(f"[{self._backend}] op {name} has a kernel already, {known}; {origin} cannot be another")
        self._records[name] = record
        return record

    def find(self, op: Op) -> R | None:
        """The kernels of an op, or None."""
        if op.name not in self._records:
            package, _, stem = op.rule.__module__.rpartition(".")
            if package == "graphrt.ops":
                _import(f"graphrt.backends.{self._backend}.{stem}")
        return self._records.get(op.name)

    def supports(self, node: Tensor) -> Support:
        """Whether there are kernels for a node, and if not, why."""
        assert node.op is not None
        record = self.find(node.op)
        if record is None:
            return Support(False, f"{self._backend} has no kernel for {node.op.name}", self._remedy)
        for tensor in (node, *node.srcs):
            if tensor is not None and tensor.rank > MAX_RANK:
                return Support(False, f"{tensor!r} has {tensor.rank} axes, kernels take {MAX_RANK}", "reshape it")
            if tensor is not None and tensor.dtype.rows > 1 and not self._interleaved:
                remedy = f"load it as {tensor.dtype.plain.name} (without --repack)"
                return Support(False, f"the rows of {tensor!r} are interleaved for the CPU", remedy)
        return record.takes(node)


@cache
def _import(module: str) -> None:
    if importlib.util.find_spec(module) is not None:
        importlib.import_module(module)


def dtypes_in(*names: str) -> Takes:
    """A `takes` that wants the output and every source in one of the named dtypes."""

    def takes(node: Tensor) -> Support:
        for tensor in (node, *node.srcs):
            if tensor is not None and tensor.dtype.name not in names:
                return Support(False, f"no kernel for {tensor.dtype}", f"cast it to one of {', '.join(names)}")
        return YES

    return takes


FLOATS = ("f32", "f16", "bf16")
floats = dtypes_in(*FLOATS)
