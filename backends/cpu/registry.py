"""The CPU backend's kernels by op, and how a node becomes calls of native functions.

A kernel is registered by decorating its factory, a function that returns the native kernel:

    @kernel(ops.silu, takes=floats)
    def silu(lanes, out, x):                     # float32 values in a vector; dtype names of the output and the sources
        def run(args, ith, nth):                 # see args.py for what a kernel finds at `args`
            first, last = share(rows(args, 0), ith, nth)
            for row in range(first, last):
                ...
        return run

This suffices for kernels that do their work in one call; the op's params become the scalars, in the order of its
signature. Where other scalars or constants are wanted, say so:

    @silu.lowering                               # the node's calls
    def _(node): return [Call(native(silu.factory, …), tensors=[node, *node.srcs], scalars=[…])]

An op whose nodes take several kernels, or workspace, has a lowering and no kernel of its own:

    @lowering(ops.mul_mat, workspace=bytes_of)   # bytes_of(node, threads): while the node runs
    def _(node): return [Call(…), Call(…)]
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

from graphrt.backend import YES, Support
from graphrt.backends.cpu import host
from graphrt.backends.cpu.jit import Kernel, Native, native
from graphrt.errors import KernelError
from graphrt.op import Op
from graphrt.tensor import Tensor

MAX_RANK = 4


@dataclass(frozen=True)
class Call:
    """One call of a native function: what it is packed with, in this order.

    Args:
        tensors: 9 words each; None for an absent source.
        scalars: one word each; floats as float64, native functions as their addresses.
        extras: ints and native functions that follow the workspace and the counter.
        results: how many of the tensors, the first ones, it writes; beside these it writes to its workspace only.
        base: where its workspace begins in that of its group, in bytes.
        writes, reads: the parts of the group's workspace that it writes, all where None, and that it reads besides.
        work: about how many elements it handles, an addition each, where that is all that takes time: a little is left
            to one thread, for which ith is 0 and nth is 1. None: all threads take part.
    """

    function: Native
    tensors: Sequence[Tensor | None]
    scalars: Sequence[float | Native] = ()
    extras: Sequence[int | Native] = ()
    results: int = 1
    base: int = 0
    writes: Sequence[tuple[int, int]] | None = None
    reads: Sequence[tuple[int, int]] = ()
    work: int | None = None

    @property
    def functions(self) -> list[Native]:
        """The native functions that it needs: its own, and those that this one calls by their addresses."""
        return [self.function, *(word for word in (*self.scalars, *self.extras) if isinstance(word, Native))]


@dataclass
class KernelRecord:
    """The kernel of one op: its factory, which nodes it takes, its workspace and its lowering."""

    op: Op
    factory: Callable[..., Kernel] | None
    takes: Callable[[Tensor], Support] = lambda node: YES
    _workspace: Callable[[Tensor, int], int] = field(default=lambda node, threads: 0)
    _lower: Callable[[Tensor], list[Call]] | None = None

    def lowering(self, function: Callable[[Tensor], list[Call]]) -> Callable[[Tensor], list[Call]]:
        """Attach the calls that a node becomes."""
        self._lower = function
        return function

    def workspace_of(self, node: Tensor, threads: int) -> int:
        return self._workspace(node, threads)

    def lower(self, node: Tensor) -> list[Call]:
        """The node's calls: the attached lowering's, or one call of the factory's kernel for the node's dtypes."""
        if self._lower is not None:
            return self._lower(node)
        assert self.factory is not None
        tensors = [node, *node.srcs]
        names = ["absent" if tensor is None else tensor.dtype.name for tensor in tensors]
        return [Call(native(self.factory, host.level().lanes, *names), tensors, numbers(node))]


def numbers(node: Tensor) -> list[float]:
    """The node's params as scalars, tuples flattened; None is -1.

    Raises: KernelError for a param that is no number; such an op's kernel needs a lowering of its own.
    """
    found: list[float] = []
    for name, value in node.params.items():
        for item in value if isinstance(value, tuple) else (value,):
            if item is not None and not isinstance(item, (bool, int, float)):
                op = node.op.name if node.op else "leaf"
                raise KernelError(f"[{op}] param {name}={value!r} is no number; give the kernel a lowering")
            found.append(-1 if item is None else item)
    return found


_KERNELS: dict[str, KernelRecord] = {}
_ORIGINS: dict[str, str] = {}


def kernel(
    op: Op, *, takes: Callable[[Tensor], Support] = lambda node: YES
) -> Callable[[Callable[..., Kernel]], KernelRecord]:
    """Register the decorated factory as the CPU kernel of `op`.

    Args:
        takes: says of a node whether the kernel takes it, and if not, why and what would help. Tensors of more than
            four axes are refused before it is asked.
    Raises: KernelError if another function is registered for the op.
    """

    return lambda factory: _register(KernelRecord(op, factory, takes), factory)


def lowering(
    op: Op,
    *,
    takes: Callable[[Tensor], Support] = lambda node: YES,
    workspace: Callable[[Tensor, int], int] = lambda node, threads: 0,
) -> Callable[[Callable[[Tensor], list[Call]]], KernelRecord]:
    """Register the decorated function, node -> calls, for an op whose nodes become calls of several kernels.

    Args:
        takes: as for `kernel`.
        workspace: (node, threads) -> bytes of workspace.
    Raises: KernelError if another function is registered for the op.
    """
    return lambda function: _register(KernelRecord(op, None, takes, workspace, function), function)


def _register(record: KernelRecord, function: Callable[..., object]) -> KernelRecord:
    """Keep a record; the same function defined once more (a module reloaded) replaces its own."""
    origin = f"{function.__module__}.{function.__qualname__}"
    name = record.op.name
    if _ORIGINS.setdefault(name, origin) != origin:
        raise KernelError(f"[cpu] op {name} has a kernel already, {_ORIGINS[name]}; {origin} cannot be another")
    _KERNELS[name] = record
    return record


def find(op: Op) -> KernelRecord | None:
    """The CPU kernel of an op, or None. Those of graphrt/ops/NAME.py are looked for in graphrt/backends/cpu/NAME.py."""
    if op.name not in _KERNELS:
        package, _, stem = op.rule.__module__.rpartition(".")
        if package == "graphrt.ops":
            _import_kernels(stem)
    return _KERNELS.get(op.name)


@cache
def _import_kernels(stem: str) -> None:
    name = f"graphrt.backends.cpu.{stem}"
    if importlib.util.find_spec(name) is not None:
        importlib.import_module(name)


def supports(node: Tensor) -> Support:
    """Whether the CPU backend has a kernel for the node, and if not, why."""
    assert node.op is not None
    record = find(node.op)
    if record is None:
        return Support(False, "no kernel", "it runs on the reference backend; add one with @cpu.kernel")
    for tensor in (node, *node.srcs):
        if tensor is not None and tensor.rank > MAX_RANK:
            return Support(False, f"{tensor!r} has {tensor.rank} axes, kernels take {MAX_RANK}", "reshape it")
    return record.takes(node)


def dtypes_in(*names: str) -> Callable[[Tensor], Support]:
    """A `takes` that wants the output and every source in one of the named dtypes."""

    def takes(node: Tensor) -> Support:
        for tensor in (node, *node.srcs):
            if tensor is not None and tensor.dtype.name not in names:
                return Support(False, f"no kernel for {tensor.dtype}", f"cast it to one of {', '.join(names)}")
        return YES

    return takes


floats = dtypes_in("f32", "f16", "bf16")
