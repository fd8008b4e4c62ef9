"""Residents: the weights and states that live in a memory from run to run, shared by all plans of a scheduler."""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakKeyDictionary, WeakValueDictionary

from graphrt.buffer import HOST, Buffer, HostBuffer
from graphrt.errors import PlacementError
from graphrt.placement import Placement
from graphrt.tensor import Tensor


class Residents:
    """Where each leaf's bytes are: on the host in its own data, on a device in a buffer that was filled once."""

    def __init__(self) -> None:
        # Weakly, so that a state (a KV cache) is given back with the plans that use it.
        self._held: WeakKeyDictionary[Tensor, dict[str, Buffer]] = WeakKeyDictionary()
        self._first: WeakValueDictionary[object, Tensor] = WeakValueDictionary()  # by origin

    def buffer(self, leaf: Tensor, home: Placement | None) -> Buffer:
        """The buffer of a leaf at its home; a device's is allocated and filled when first asked for.

        Raises: PlacementError if the device has no room, or if a state that lives in one memory is put in another;
            KernelError if the copy fails.
        """
        memory = HOST if home is None else home.backend.memory
        held = self._held.setdefault(self._first.setdefault(leaf.origin, leaf), {})
        if memory not in held:
            if leaf.role == "state" and held:
                raise PlacementError(
                    f"[{leaf.name}] is a state that lives in the memory {next(iter(held))}, and cannot also live in "
                    f"{memory}; place it alike in all graphs"
                )
            held[memory] = HostBuffer.of_leaf(leaf) if home is None or memory == HOST else _upload(leaf, home)
        return held[memory]

    def held_bytes(self, leafs: Iterable[Tensor], memory: str) -> int:
        """Bytes that these leafs have in a memory by now."""
        held = (self._held.get(self._first.get(leaf.origin, leaf), {}).get(memory) for leaf in leafs)
        return sum(buffer.nbytes for buffer in held if buffer is not None)

    def find(self, state: Tensor) -> Buffer:
        """The buffer of a state where it lives now; on the host while no plan has used it."""
        held = self._held.get(state)
        return next(iter(held.values())) if held else HostBuffer.of_leaf(state)


def _upload(leaf: Tensor, home: Placement) -> Buffer:
    buffer = home.backend.allocate(leaf.extent)
    if leaf.role == "state" and not leaf.has_data:
        return buffer
    source = HostBuffer.of_leaf(leaf)
    if source.nbytes > buffer.nbytes:
        raise PlacementError(f"[{home.backend.name}] gave {buffer.nbytes:,} bytes for {leaf!r} of {source.nbytes:,}")
    label = f"{leaf.role} {leaf.name} ({source.nbytes:,} bytes) from {HOST} to {buffer.memory}"
    buffer.begin_write(0, source.read(0, source.nbytes), label)
    home.backend.synchronize()
    return buffer
