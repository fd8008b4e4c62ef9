"""Kernels of ops on CUDA devices: each op's file registers a function, node -> launches, and which nodes it takes.

@lowering(ops.neg, takes=floats)
def _(node: Tensor) -> list[Launch]:
    (x,) = node.srcs
    return [Launch(UNIT.kernel(f"neg<{node.dtype}>"), grid=[...], block=[256], arguments=[node, x])]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from graphrt.backend import YES
from graphrt.backends.cuda.launch import Step
from graphrt.kernels import Kernels, Takes
from graphrt.op import Op
from graphrt.tensor import Tensor

Lower = Callable[[Tensor], Sequence[Step]]


@dataclass(frozen=True)
class KernelRecord:
    """The kernels of one op: which nodes they take, the bytes of workspace of a node, and its launches."""

    op: Op
    takes: Takes
    workspace: Callable[[Tensor], int]
    lower: Lower


KERNELS = Kernels[KernelRecord]("cuda", "add one with @lowering (docs/cuda.md)")
find, supports = KERNELS.find, KERNELS.supports


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
    return lambda function: KERNELS.add(KernelRecord(op, takes, workspace, function), function)
