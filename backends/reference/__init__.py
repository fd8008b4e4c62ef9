"""The reference backend: every op's NumPy semantics, on the host. Slow and right; it takes what no other can."""

from __future__ import annotations

from dataclasses import dataclass

from graphrt.backend import YES, Backend, Program, Split, Support
from graphrt.dtypes import Array
from graphrt.errors import KernelError
from graphrt.settings import Settings
from graphrt.tensor import Tensor


class ReferenceBackend(Backend):
    """Runs each node through its op's NumPy reference."""

    name = "reference"

    def supports(self, node: Tensor) -> Support:
        return YES

    def compile(self, split: Split) -> Program:
        return ReferenceProgram([_Step.of(node, split) for node in split.nodes])


@dataclass(frozen=True)
class _Step:
    node: Tensor
    result: Array
    sources: list[Array | None]

    @classmethod
    def of(cls, node: Tensor, split: Split) -> _Step:
        sources = [None if src is None else split.location[src].array(src) for src in node.srcs]
        return cls(node, split.location[node].array(node), sources)

    def run(self) -> None:
        op = self.node.op
        if op is None:
            return
        value = op.evaluate(self.node, self.sources)
        if value.shape != self.result.shape or value.dtype != self.result.dtype:
            raise KernelError(
                f"[{op.name}] the reference gave {value.dtype} {list(value.shape)} for {self.node!r}; "
                f"its shape rule and its reference disagree"
            )
        self.result[...] = value


class ReferenceProgram(Program):
    """The steps of a split, one NumPy call each."""

    def __init__(self, steps: list[_Step]) -> None:
        self._steps = steps

    def run(self) -> None:
        for step in self._steps:
            step.run()


def create(settings: Settings) -> ReferenceBackend:
    """Make the reference backend; it has no settings."""
    return ReferenceBackend()
