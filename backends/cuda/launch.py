"""Launches: what one kernel is started with, and how its arguments become bytes."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graphrt.backends.cuda.memory import address_of
from graphrt.backends.cuda.units import Kernel
from graphrt.buffer import Location
from graphrt.errors import KernelError
from graphrt.kernels import MAX_RANK
from graphrt.tensor import Tensor

MOST_BLOCKS = (2**31 - 1, 65535, 65535)


@dataclass(frozen=True)
class Whole:
    """An int64 argument."""

    value: int


@dataclass(frozen=True)
class Address:
    """A pointer to a tensor's first element; null where there is no tensor."""

    tensor: Tensor | None


@dataclass(frozen=True)
class Workspace:
    """A pointer so many bytes into the node's workspace."""

    offset: int = 0


# A tensor becomes a struct Tensor of common.cuh, an int an int32, a float a float32.
Argument = Tensor | Address | Workspace | Whole | int | float


@dataclass(frozen=True)
class Launch:
    """A kernel's start.

    Args:
        grid, block: blocks, and threads of one, by axes x, y, z; axes that lack are 1.
        shared: bytes of dynamic shared memory of a block.
    """

    kernel: Kernel
    grid: Sequence[int]
    block: Sequence[int]
    arguments: Sequence[Argument]
    shared: int = 0


@dataclass(frozen=True)
class Bound:
    """A launch over memory: arguments as bytes, and a table of pointers to them, as drivers take it."""

    kernel: Kernel
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    pointers: ctypes.Array[ctypes.c_void_p]
    kept: list[ctypes.Array[ctypes.c_char]]


def bind(launch: Launch, locations: Mapping[Tensor, Location], workspace: Location | None) -> Bound:
    """Pack a launch's arguments.

    Raises: KernelError for a grid that is too large, or memory that is not the device's.
    """
    grid = (*launch.grid, 1, 1, 1)[:3]
    if any(blocks > most for blocks, most in zip(grid, MOST_BLOCKS, strict=True)):
        raise KernelError(f"[cuda] {launch.kernel} would need a grid of {list(grid)}; split the batch")
    packed = [ctypes.create_string_buffer(each, len(each)) for each in _packed(launch, locations, workspace)]
    pointers = (ctypes.c_void_p * max(1, len(packed)))(*map(ctypes.addressof, packed))
    x, y, z = grid
    bx, by, bz = (*launch.block, 1, 1, 1)[:3]
    return Bound(launch.kernel, (x, y, z), (bx, by, bz), launch.shared, pointers, packed)


def _packed(launch: Launch, locations: Mapping[Tensor, Location], workspace: Location | None) -> list[bytes]:
    found = []
    for argument in launch.arguments:
        match argument:
            case Tensor():
                found.append(_tensor(argument, locations[argument]))
            case Address(tensor):
                found.append(struct.pack("q", 0 if tensor is None else address_of(locations[tensor])))
            case Workspace(offset):
                if workspace is None:
                    raise KernelError(f"[cuda] {launch.kernel} was given no workspace")
                found.append(struct.pack("q", address_of(workspace) + offset))
            case Whole(value):
                found.append(struct.pack("q", value))
            case float():
                found.append(struct.pack("f", argument))
            case _:
                found.append(struct.pack("i", argument))
    return found


def _tensor(tensor: Tensor, location: Location) -> bytes:
    missing = MAX_RANK - tensor.rank
    shape = [*[1] * missing, *tensor.shape]
    if tensor.dtype.is_quantized:
        shape[-1] //= tensor.dtype.block
    return struct.pack("9q", address_of(location), *shape, *[0] * missing, *tensor.strides)
