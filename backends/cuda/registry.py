"""Kernels of ops on CUDA devices: each op's file registers a function, node -> launches, and which nodes it takes.

@lowering(ops.neg, takes=floats)
def _(node: Tensor) -> list[Launch]:
    (x,) = node.srcs
    return [Launch(UNIT.kernel(f"neg<{node.dtype}>"), grid=[...], block=[256], arguments=[node, x])]
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from graphrt.backend import YES, Support
from graphrt.backends.cuda.launch import MAX_RANK, Launch
from graphrt.errors import KernelError
from graphrt.op import Op
from graphrt.tensor import Tensor

Takes = Callable[[Tensor], Support]
Lower = Callable[[Tensor], list[Launch]]


@dataclass(frozen=True)
class KernelRecord:
    """The kernels of one op: which nodes they take, the bytes of workspace of a node, and its launches."""

    op: Op
    takes: Takes
    workspace: Callable[[Tensor], int]
    lower: Lower


_KERNELS: dict[str, KernelRecord] = {}


def lowering(
    op: Op, *, takes: Takes = lambda node: YES, workspace: Callable[[Tensor], int] = lambda node: 0
) -> Callable[[Lower], KernelRecord]:
    """Register the decorated function, node -> launches, as the CUDA kernels of `op`.

    Args:
        takes: says of a node whether the kernels take it, and if not, why and what would help. Tensors of more than
            four axes, and those without elements, do not come here.
        workspace: node -> bytes of workspace.
    Raises: KernelError if another function is registered for the op.
    """

    def register(function: Lower) -> KernelRecord:
        known = _KERNELS.get(op.name)
        if known is not None and known.lower.__module__ != function.__module__:
            raise KernelError(f"[cuda] op {op.name} has kernels already, in {known.lower.__module__}")
        _KERNELS[op.name] = KernelRecord(op, takes, workspace, function)
        return _KERNELS[op.name]

    return register


def find(op: Op) -> KernelRecord | None:
    """The kernels of an op, or None. Those of graphrt/ops/NAME.py are looked for in graphrt/backends/cuda/NAME.py."""
    if op.name not in _KERNELS:
        package, _, stem = op.rule.__module__.rpartition(".")
        if package == "graphrt.ops":
            _import_kernels(stem)
    return _KERNELS.get(op.name)


@cache
def _import_kernels(stem: str) -> None:
    name = f"graphrt.backends.cuda.{stem}"
    if importlib.util.find_spec(name) is not None:
        importlib.import_module(name)


def supports(node: Tensor) -> Support:
    """Whether there are kernels for the node, and if not, why."""
    assert node.op is not None
    record = find(node.op)
    if record is None:
        return Support(False, f"cuda has no kernel for {node.op.name}", "add one with @lowering (docs/add-an-op.md)")
    for tensor in (node, *node.srcs):
        if tensor is not None and tensor.rank > MAX_RANK:
            return Support(False, f"{tensor!r} has {tensor.rank} axes, kernels take {MAX_RANK}", "reshape it")
    return record.takes(node)


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
