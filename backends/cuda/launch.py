"""Launches: what one kernel is started with, and how its arguments become bytes; and products that a library makes."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from graphrt.backends.cuda.memory import address_of
from graphrt.backends.cuda.units import Kernel
from graphrt.buffer import Location
from graphrt.errors import KernelError
from graphrt.kernels import MAX_RANK
from graphrt.tensor import Tensor

MOST_BLOCKS = (2**31 - 1, 65535, 65535)
SCRATCH = 32 << 20  # bytes that cuBLAS is given for sums of parts of k, as NVIDIA advises; 4 MiB would do before Hopper
SCRATCH_ALIGNMENT = 256


@dataclass(frozen=True)
class Whole:
    """An int64 argument."""

    value: int


@dataclass(frozen=True)
class Address:
    """A pointer so many bytes behind a tensor's first element; null where there is no tensor."""

    tensor: Tensor | None
    offset: int = 0


@dataclass(frozen=True)
class Workspace:
    """A pointer so many bytes into the node's workspace."""

    offset: int = 0


@dataclass(frozen=True)
class Part:
    """Some of a tensor's elements, as a view of it that no graph knows."""

    whole: Tensor
    view: Tensor


# A tensor becomes a struct Tensor of common.cuh, an int an int32, a float a float32.
Argument = Tensor | Part | Address | Workspace | Whole | int | float


@dataclass(frozen=True)
class Launch:
    """A kernel's start.

    Args:
        grid, block: blocks, and threads of one, by axes x, y, z; axes that lack are 1.
        shared: bytes of dynamic shared memory of a block.
        note: what is to be told in debug output of it.
    """

    kernel: Kernel
    grid: Sequence[int]
    block: Sequence[int]
    arguments: Sequence[Argument]
    shared: int = 0
    note: str = ""


@dataclass(frozen=True)
class Gemm:
    """A product that the device's library makes in place of a kernel: y[n, m] = sum over k of w[m, k] · x[n, k].

    w and x are bf16, y and the sums float32; elements of a row lie side by side.

    Args:
        y, w, x: where their first elements are.
        scratch: where the library has SCRATCH bytes for itself, from the next multiple of SCRATCH_ALIGNMENT on.
        rows, columns, width: m of w, n of x, and k of both.
        y_step, w_step, x_step: elements from one row to the next.
    """

    y: Address | Workspace
    w: Address | Workspace
    x: Address | Workspace
    scratch: Workspace
    rows: int
    columns: int
    width: int
    y_step: int
    w_step: int
    x_step: int

    def __str__(self) -> str:
        return f"the library's product of {self.columns} rows of {self.width} by {self.rows}"


Step = Launch | Gemm


@dataclass(frozen=True)
class Bound:
    """A launch over memory: arguments as bytes, and a table of pointers to them, as drivers take it."""

    kernel: Kernel
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int
    pointers: ctypes.Array[ctypes.c_void_p]
    kept: list[ctypes.Array[ctypes.c_char]]


@dataclass(frozen=True)
class BoundGemm:
    """A library's product over memory: the addresses of what it names."""

    product: Gemm
    y: int
    w: int
    x: int
    scratch: int


BoundStep = Bound | BoundGemm


def kernels_of(steps: Iterable[Step | BoundStep]) -> list[Kernel]:
    """The kernels that are launched, each once."""
    return list(dict.fromkeys(step.kernel for step in steps if isinstance(step, Launch | Bound)))


def counted(steps: Sequence[BoundStep]) -> str:
    """How many steps there are, for debug output."""
    products = sum(isinstance(step, BoundGemm) for step in steps)
    by_library = f" and {products} product{'s' if products > 1 else ''} by cuBLAS" if products else ""
    return f"{len(steps) - products} launches{by_library}"


def bind(step: Step, locations: Mapping[Tensor, Location], workspace: Location | None) -> BoundStep:
    """Put addresses into a step, and pack a launch's arguments.

    Raises: KernelError for a grid that is too large, or memory that is not the device's.
    """
    if isinstance(step, Gemm):
        places = step.y, step.w, step.x, step.scratch
        y, w, x, scratch = (_pointer(place, step, locations, workspace) for place in places)
        return BoundGemm(step, y, w, x, -(-scratch // SCRATCH_ALIGNMENT) * SCRATCH_ALIGNMENT)
    grid = (*step.grid, 1, 1, 1)[:3]
    if any(blocks > most for blocks, most in zip(grid, MOST_BLOCKS, strict=True)):
        raise KernelError(f"[cuda] {step.kernel} would need a grid of {list(grid)}; split the batch")
    packed = [ctypes.create_string_buffer(each, len(each)) for each in _packed(step, locations, workspace)]
    pointers = (ctypes.c_void_p * max(1, len(packed)))(*map(ctypes.addressof, packed))
    x, y, z = grid
    bx, by, bz = (*step.block, 1, 1, 1)[:3]
    return Bound(step.kernel, (x, y, z), (bx, by, bz), step.shared, pointers, packed)


def _pointer(
    argument: Address | Workspace, step: Step, locations: Mapping[Tensor, Location], workspace: Location | None
) -> int:
    if isinstance(argument, Address):
        return 0 if argument.tensor is None else address_of(locations[argument.tensor]) + argument.offset
    if workspace is None:
        raise KernelError(f"[cuda] {step.kernel if isinstance(step, Launch) else step} was given no workspace")
    return address_of(workspace) + argument.offset


def _packed(launch: Launch, locations: Mapping[Tensor, Location], workspace: Location | None) -> list[bytes]:
    found = []
    for argument in launch.arguments:
        match argument:
            case Tensor():
                found.append(_tensor(argument, locations[argument]))
            case Part(whole, view):
                found.append(_tensor(view, locations[whole].after(view.offset - whole.offset)))
            case Address() | Workspace():
                found.append(struct.pack("q", _pointer(argument, launch, locations, workspace)))
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
