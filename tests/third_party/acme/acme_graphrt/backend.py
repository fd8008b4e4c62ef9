"""The backend "acme": a device with memory of its own that multiplies matrices and applies hard_swish."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from acme_graphrt.hard_swish import hard_swish
from graphrt import Settings, Tensor, ops
from graphrt.backend import YES, Backend, Program, Split, Support
from graphrt.buffer import Buffer, Location


class AcmeBuffer(Buffer):
    """Bytes that only this package's programs reach."""

    memory = "acme"

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.bytes = bytearray(nbytes)

    def read(self, offset: int, nbytes: int) -> np.ndarray:
        return np.frombuffer(bytes(self.bytes[offset : offset + nbytes]), np.uint8)

    def write(self, offset: int, data: np.ndarray) -> None:
        self.bytes[offset : offset + data.nbytes] = data.tobytes()


class AcmeBackend(Backend):
    """Runs two ops, and says of the others that it cannot."""

    name = memory = "acme"
    OPS: ClassVar = (ops.mul_mat, hard_swish)

    def supports(self, node: Tensor) -> Support:
        if node.op not in self.OPS:
            return Support(False, f"acme has no kernel for {node.op.name}", "leave it on the CPU")
        if not all(tensor.is_dense for tensor in (node, *node.srcs)):
            return Support(False, "acme reads dense tensors only", "wrap the source in ops.cont")
        return YES

    def allocate(self, nbytes: int) -> AcmeBuffer:
        return AcmeBuffer(nbytes)

    def compile(self, split: Split) -> Program:
        return AcmeProgram(split)


class AcmeProgram(Program):
    """The nodes of a split, one after the other."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def run(self) -> None:
        for node in self.split.nodes:
            sources = [_read(src, self.split.location[src]) for src in node.srcs]
            place = self.split.location[node]
            place.buffer.write(place.offset, node.op.evaluate(node, sources).reshape(-1).view(np.uint8))


def _read(tensor: Tensor, place: Location) -> np.ndarray:
    return tensor.array_over(place.buffer.read(place.offset, tensor.extent))


def create(settings: Settings) -> AcmeBackend:
    """Make the backend; it has no settings."""
    return AcmeBackend()
