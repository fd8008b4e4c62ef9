"""Programs of a pretend device: the ops' references over its own memory, the clock advanced by each node's cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphrt.backend import Program, Split
from graphrt.backends.sim.clock import Clock
from graphrt.backends.sim.failures import Failures
from graphrt.backends.sim.memory import SimBuffer
from graphrt.backends.sim.queue import Queue
from graphrt.dtypes import Array
from graphrt.errors import GraphError, KernelError
from graphrt.op import Cost, Op
from graphrt.tensor import Tensor


@dataclass(frozen=True)
class Step:
    """One node with the arrays that it reads and writes, on the device."""

    node: Tensor
    op: Op
    cost: Cost
    result: Array
    sources: list[Array | None]

    @classmethod
    def of(cls, node: Tensor, split: Split) -> Step:
        """Find a node's arrays.

        Raises: KernelError if one of them is not in the device's memory.
        """
        if node.op is None:
            raise KernelError(f"[{split.backend.name}] {node!r} is a leaf; only nodes run")
        sources = [None if src is None else _array(src, split) for src in node.srcs]
        return cls(node, node.op, node.op.cost_of(node), _array(node, split), sources)

    def run(self) -> None:
        """Compute the node."""
        value = self.op.evaluate(self.node, self.sources)
        if value.shape != self.result.shape or value.dtype != self.result.dtype:
            raise KernelError(f"the reference gave {value.dtype} {list(value.shape)} for {self.node!r}")
        self.result[...] = value


def _array(tensor: Tensor, split: Split) -> Array:
    location = split.location[tensor]
    if not isinstance(location.buffer, SimBuffer) or location.buffer.memory != split.backend.memory:
        raise KernelError(
            f"[{split.backend.name}] {tensor!r} lies on {location.buffer.memory}, out of its reach; "
            f"the scheduler must copy it"
        )
    return location.buffer.array_on_device(tensor, location.offset)


class SimProgram(Program):
    """The steps of a split, one after the other."""

    def __init__(self, steps: Sequence[Step], queue: Queue, clock: Clock, failures: Failures) -> None:
        self._steps, self._queue, self._clock, self._failures = steps, queue, clock, failures

    def run(self) -> None:
        """Run every node once, or begin to.

        Raises, there or where it is waited for: KernelError that names the node whose kernel failed; GraphError for ids
            outside their rows.
        """
        self._queue.begin(self._run)

    def _run(self) -> None:
        for step in self._steps:
            try:
                self._failures.before_kernel(step.op.name)
                step.run()
            except GraphError:
                raise
            except Exception as error:
                raise KernelError(f"[{step.op.name}] the kernel of {step.node!r} failed: {error}") from error
            self._clock.compute(step.op.name, step.cost)
