"""Programs of a CUDA device: the launches of a split, begun as one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from graphrt.backend import Group, Program, Split
from graphrt.backends.cuda import registry
from graphrt.backends.cuda.device import Device
from graphrt.backends.cuda.launch import BoundStep, Launch, Step, bind, kernels_of
from graphrt.errors import KernelError
from graphrt.patterns import Fused


class CudaProgram(Program):
    """The launches of a split; `summary` says how they are begun, and what else is noted of them."""

    def __init__(self, device: Device, launches: list[BoundStep], notes: Iterable[str]) -> None:
        device.load(kernels_of(launches))
        self._launches = launches  # the argument bytes live as long as the program
        self._replay, summary = device.prepare(launches)
        self.summary = "; ".join([summary, *notes])

    def run(self) -> None:
        self._replay()


def compile_split(split: Split, device: Device) -> CudaProgram:
    """The program of a split.

    Raises: KernelError if a node has no kernels, or its memory is not the device's.
    """
    launches: list[BoundStep] = []
    notes = dict[str, None]()
    for group in split.groups:
        workspace = split.workspace.get(group.nodes[0])
        for step in launches_of(group):
            launches.append(bind(step, split.location, workspace))
            if isinstance(step, Launch) and step.note:
                notes[step.note] = None
    return CudaProgram(device, launches, notes)


def launches_of(group: Group) -> Sequence[Step]:
    """What a group, or a node alone, becomes.

    Raises: KernelError if there are no kernels for a node.
    """
    if isinstance(group, Fused):
        return group.lower()
    (node,) = group.nodes
    record = None if node.op is None else registry.find(node.op)
    if record is None:
        raise KernelError(f"[cuda] there is no kernel for {node!r}")
    return record.lower(node) if node.size else []
