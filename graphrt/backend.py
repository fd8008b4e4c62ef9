"""What a backend is: memory, an answer to "can you run this node?", and compile(split) -> Program."""

from __future__ import annotations

import ctypes
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import numpy as np

from graphrt.dtypes import Array
from graphrt.errors import PlacementError, SettingsError
from graphrt.settings import Settings
from graphrt.tensor import Tensor

ALIGNMENT = 64


@dataclass(frozen=True)
class Support:
    """A backend's answer about a node: yes, or no with the reason and what would help."""

    ok: bool
    reason: str = ""
    remedy: str = ""

    def __bool__(self) -> bool:
        return self.ok


YES = Support(True)


class Buffer:
    """Host memory as bytes: aligned to 64 and zeroed, or a leaf's own."""

    def __init__(self, memory: Array, owner: object = None) -> None:
        self.memory = memory
        self.address: int = memory.__array_interface__["data"][0]
        self._owner = owner

    @property
    def nbytes(self) -> int:
        return self.memory.nbytes

    @classmethod
    def allocate(cls, nbytes: int) -> Buffer:
        """Zeroed memory of that size.

        Raises: PlacementError if the machine has no room.
        """
        try:
            raw = np.zeros(nbytes + ALIGNMENT, np.uint8)
        except MemoryError as error:
            raise PlacementError(
                f"[memory] no room for {nbytes:,} bytes on the host; lower n_ctx or the batch size, "
                f"or choose a smaller cache type"
            ) from error
        start = -raw.__array_interface__["data"][0] % ALIGNMENT
        return cls(raw[start : start + nbytes])

    @classmethod
    def of_leaf(cls, leaf: Tensor) -> Buffer:
        """The bytes that a leaf's data spans, gaps included, without a copy."""
        array = leaf.data
        if array is None:
            raise PlacementError(f"[memory] {leaf!r} has no data")
        span: Any = (ctypes.c_uint8 * leaf.extent).from_address(array.__array_interface__["data"][0])
        memory = np.frombuffer(span, np.uint8)
        memory.flags.writeable = array.flags.writeable
        return cls(memory, owner=array)


@dataclass(frozen=True)
class Location:
    """Where a tensor's first element lies."""

    buffer: Buffer
    offset: int

    @property
    def address(self) -> int:
        return self.buffer.address + self.offset

    def array(self, tensor: Tensor) -> Array:
        """The tensor's elements as a NumPy array over this memory."""
        return tensor.array_over(self.buffer.memory, self.offset)


@dataclass(frozen=True)
class Split:
    """Nodes that one backend runs one after the other, and where everything they touch lies.

    Args:
        nodes: in execution order, without views (those are locations only).
        location: of each node, source and leaf.
        workspace: scratch memory of the nodes that asked for some.
    """

    backend: Backend
    nodes: list[Tensor]
    location: Mapping[Tensor, Location]
    workspace: Mapping[Tensor, Location]


class Program(ABC):
    """A compiled split: runs any number of times over the same memory with new bytes in it."""

    @abstractmethod
    def run(self) -> None:
        """Run every node once."""


class Backend(ABC):
    """A device. Host backends share the host's memory and so inherit everything but supports and compile."""

    name: str

    @abstractmethod
    def supports(self, node: Tensor) -> Support:
        """Whether the backend can run the node."""

    def workspace(self, node: Tensor) -> int:
        """Bytes of scratch memory that the node needs while it runs."""
        return 0

    def allocate(self, nbytes: int) -> Buffer:
        """Zeroed memory on this device."""
        return Buffer.allocate(nbytes)

    @abstractmethod
    def compile(self, split: Split) -> Program:
        """Make a program of a split; everything is checked here, so that running it cannot touch foreign memory."""


Factory = Callable[[Settings], Backend]

_BUILT_IN = {"cpu": "graphrt.backends.cpu:create", "reference": "graphrt.backends.reference:create"}


def available() -> dict[str, str]:
    """Every backend by name, with where its factory is: the built-in ones, and those of installed packages.

    Raises: SettingsError if two packages offer the same name.
    """
    found = dict(_BUILT_IN)
    for point in entry_points(group="graphrt.backends"):
        if found.setdefault(point.name, point.value) != point.value:
            raise SettingsError(
                f'[backend] "{point.name}" is offered by {found[point.name]} and by {point.value}; uninstall one'
            )
    return found


def create(name: str, settings: Settings) -> Backend:
    """Make the backend of that name.

    Raises: SettingsError, listing what exists, if there is none; PlacementError if it cannot start here.
    """
    target = available().get(name)
    if target is None:
        raise SettingsError(f'[backend] no backend is called "{name}"; there are: {", ".join(sorted(available()))}')
    module, _, attribute = target.partition(":")
    factory: Factory = getattr(importlib.import_module(module), attribute)
    return factory(settings)
