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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from graphrt.backend import YES
from graphrt.backends.cpu import host
from graphrt.backends.cpu.jit import Kernel, Native, native
from graphrt.errors import KernelError
from graphrt.kernels import Kernels, Takes
from graphrt.op import Op
from graphrt.tensor import Tensor


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
    takes: Takes = lambda node: YES
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


KERNELS = Kernels[KernelRecord]("cpu", "it runs on the reference backend; add one with @cpu.kernel", interleaved=True)
find, supports = KERNELS.find, KERNELS.supports


def kernel(op: Op, *, takes: Takes = lambda node: YES) -> Callable[[Callable[..., Kernel]], KernelRecord]:
    """Register the decorated factory as the CPU kernel of `op`.

    Args:
        takes: says of a node whether the kernel takes it, and if not, why and what would help. Tensors of more than
            four axes are refused before it is asked.
    Raises: KernelError if another function is registered for the op.
    """

    return lambda factory: KERNELS.add(KernelRecord(op, factory, takes), factory)


def lowering(
    op: Op,
    *,
    takes: Takes = lambda node: YES,
    workspace: Callable[[Tensor, int], int] = lambda node, threads: 0,
) -> Callable[[Callable[[Tensor], list[Call]]], KernelRecord]:
    """Register the decorated function, node -> calls, for an op whose nodes become calls of several kernels.

    Args:
        takes: as for `kernel`.
        workspace: (node, threads) -> bytes of workspace.
    Raises: KernelError if another function is registered for the op.
    """
    return lambda function: KERNELS.add(KernelRecord(op, None, takes, workspace, function), function)
