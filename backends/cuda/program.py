"""Programs of a CUDA device: the launches of a split, begun as one."""

from __future__ import annotations

from graphrt.backend import Program, Split
from graphrt.backends.cuda import registry
from graphrt.backends.cuda.device import Device
from graphrt.backends.cuda.launch import Bound, bind
from graphrt.errors import KernelError


class CudaProgram(Program):
    """The launches of a split; `summary` says how they are begun."""

    def __init__(self, device: Device, launches: list[Bound]) -> None:
        device.load(list(dict.fromkeys(bound.kernel for bound in launches)))
        self._launches = launches  # the argument bytes live as long as the program
        self._replay, self.summary = device.prepare(launches)

    def run(self) -> None:
        self._replay()


def compile_split(split: Split, device: Device) -> CudaProgram:
    """The program of a split.

    Raises: KernelError if a node has no kernels, or its memory is not the device's.
    """
    launches: list[Bound] = []
    for group in split.groups:
        workspace = split.workspace.get(group.nodes[0])
        for node in group.nodes:
            record = None if node.op is None else registry.find(node.op)
            if record is None:
                raise KernelError(f"[{split.backend.name}] there is no kernel for {node!r}")
            if node.size == 0:
                continue
            launches += [bind(launch, split.location, workspace) for launch in record.lower(node)]
    return CudaProgram(device, launches)
