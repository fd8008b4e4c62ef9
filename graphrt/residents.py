"""Residents: the weights and states that live in a memory from run to run, shared by all plans of a scheduler."""

from __future__ import annotations

import numpy as np

from graphrt.buffer import HOST, Buffer, HostBuffer
from graphrt.errors import PlacementError
from graphrt.placement import Placement
from graphrt.tensor import Tensor


class Residents:
    """Where each leaf's bytes are: on the host in its own data, on a device in a buffer that was filled once."""

    def __init__(self) -> None:
        self._held: dict[tuple[Tensor, str], Buffer] = {}

    def buffer(self, leaf: Tensor, home: Placement | None) -> Buffer:
        """The buffer of a leaf at its home; a device's is allocated and filled when first asked for.

        Raises: PlacementError if the device has no room.
        """
        memory = HOST if home is None else home.backend.memory
        key = (leaf, memory)
        if key not in self._held:
            self._held[key] = HostBuffer.of_leaf(leaf) if home is None or memory == HOST else _upload(leaf, home)
        return self._held[key]


def _upload(leaf: Tensor, home: Placement) -> Buffer:
    buffer = home.backend.allocate(leaf.extent)
    source = HostBuffer.of_leaf(leaf)
    if source.nbytes > buffer.nbytes:
        raise PlacementError(f"[{home.backend.name}] gave {buffer.nbytes:,} bytes for {leaf!r} of {source.nbytes:,}")
    buffer.write(0, np.asarray(source.read(0, source.nbytes)))
    return buffer
