"""What a backend is: memory, an answer to "can you run this node?", and compile(split) -> Program."""

from __future__ import annotations

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

import numpy as np

from graphrt.buffer import HOST, Buffer, HostBuffer, Location
from graphrt.copy_queue import CopyQueue
from graphrt.dtypes import Array
from graphrt.errors import SettingsError
from graphrt.events import PASSED, Event
from graphrt.settings import AUTO, OFFLOAD_BATCH, Settings
from graphrt.tensor import Tensor

if TYPE_CHECKING:
    from graphrt.fusion import Readers


Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Support:
    """A backend's answer about a node: yes, or no with the reason and what would help."""

    ok: bool
    reason: str = ""
    remedy: str = ""

    def __bool__(self) -> bool:
        return self.ok


YES = Support(True)


@dataclass(frozen=True)
class Group:
    """Nodes of a split that its backend runs as one: at one moment, as far as memory is concerned.

    What the group reads stays as it is until it is done, and none of its results lies over that; but a result may lie
    over a source of its own node, by the op's `inplace`, which no other node of the group reads. Results that nothing
    outside reads have no memory at all.

    Args:
        nodes: in execution order.
        fusion: what makes them one, for debug output; "" for a node alone.
        workspace: bytes of scratch memory that they need while they run.
        inplace: (result, source) where the result may lie over that source of any of the nodes besides: each element is
            written only after the source's same element has been read for the last time.
        is_apart: whether none of its results may lie over anything that it reads, whatever their ops' `inplace` say.
    """

    nodes: tuple[Tensor, ...]
    fusion: str = ""
    workspace: int = 0
    inplace: tuple[tuple[Tensor, Tensor], ...] = ()
    is_apart: bool = False


@dataclass(frozen=True)
class Split:
    """Nodes that one backend runs one after the other, and where everything they touch lies.

    Args:
        nodes: in execution order, without views (those are locations only).
        location: of each node, source and leaf, in the backend's memory; none of results within groups.
        workspace: scratch memory of the groups that asked for some, by their first node.
        groups: the nodes in the groups that the backend made; each alone where none are given.
    """

    backend: Backend
    nodes: list[Tensor]
    location: Mapping[Tensor, Location]
    workspace: Mapping[Tensor, Location]
    groups: Sequence[Group] = ()

    def __post_init__(self) -> None:
        if not self.groups:
            object.__setattr__(self, "groups", [self.backend.alone(node) for node in self.nodes])


class Program(ABC):
    """A compiled split: runs any number of times over the same memory with new bytes in it."""

    summary: str = ""  # what the backend tells of it in debug output

    @abstractmethod
    def run(self) -> None:
        """Run every node once."""


class Backend(ABC):
    """A device. Host backends share the host's memory and so inherit everything but supports and compile.

    Attributes:
        name: in overrides and in debug output.
        memory: the memory that it works on; backends of one memory reach each other's tensors without copies.
        limit: bytes that the memory holds, where known.
        speed: operations per second, and bytes per second of its memory, where known.
        asynchronous: programs and copies are only begun by the host, and done in that order. What fails then raises
            where it is waited for; the rest of what the same thread began is left undone until it synchronizes.
        copy_queue: of an asynchronous device that can bring weights here while its programs run.
    """

    name: str
    memory: str = HOST
    limit: int | None = None
    speed: tuple[float, float] | None = None
    asynchronous: bool = False
    copy_queue: CopyQueue | None = None

    @property
    def version(self) -> str:
        """Changes whenever its speed may: what was measured with another one is measured anew."""
        return ""

    @abstractmethod
    def supports(self, node: Tensor) -> Support:
        """Whether the backend can run the node."""

    def wants(self, node: Tensor, settings: Settings) -> Support:
        """Whether the backend would rather run the node than leave it where its weight lies, on the host.

        A device answers by the batch: its work must be worth bringing the weight there.
        """
        if self.memory == HOST or node.op is None:
            return Support(False, "it works on the host's memory")
        cost, least = node.op.cost_of(node), self.least_batch(node, settings)
        met = cost.batch * cost.active
        batch = f"batch {cost.batch}" + (f" x {cost.active:.3g} of the experts" if cost.active < 1 else "")
        return Support(met >= least, f"{batch} {'>=' if met >= least else '<'} {least}")

    def least_batch(self, node: Tensor, settings: Settings) -> int:
        """The batch from which on a node over host weights is worth bringing them here."""
        return OFFLOAD_BATCH if settings.op_offload_min_batch == AUTO else settings.op_offload_min_batch

    def workspace(self, node: Tensor) -> int:
        """Bytes of scratch memory that the node needs while it runs."""
        return 0

    def fuse(self, nodes: Sequence[Tensor], readers: Readers) -> Sequence[Group]:
        """Which nodes of a split it would run as one: all of them, in groups, in an order in which sources come first.

        Args:
            nodes: of the split, in execution order.
            readers: who reads their results; what only a group's own nodes read gets no memory.
        """
        return [self.alone(node) for node in nodes]

    def alone(self, node: Tensor) -> Group:
        """The group of one node."""
        return Group((node,), workspace=self.workspace(node))

    def allocate(self, nbytes: int) -> Buffer:
        """Zeroed memory on this device."""
        return HostBuffer.allocate(nbytes)

    def staging(self, nbytes: int) -> Array:
        """Host memory, as u8, in which bytes wait for this device."""
        return np.empty(nbytes, np.uint8)

    def synchronize(self) -> None:  # noqa: B027 -- nothing to wait for is the rule
        """Wait until everything that was begun on this device is done.

        Raises: what the calling thread's work failed with; the device can then be used again.
        """

    def record(self) -> Event:
        """Mark the point after everything begun on this device so far."""
        return PASSED

    def wait_for(self, event: Event) -> None:
        """Let what is begun later wait for an event of another device; an asynchronous one does not block the host."""
        event.wait()

    def drop(self, thread: int) -> None:  # noqa: B027 -- nothing waits in a queue as a rule
        """Leave undone what a thread (threading.get_ident) has begun and the device has not; it raises Cancelled."""

    def warm_up(self, groups: Sequence[Group], progress: Progress | None = None) -> int:
        """Make ready at once what programs of these groups will need, such as kernels to be compiled.

        Args:
            progress: is told of what has to be made, progress(done, total, name); None: the backend's own way.
        Returns: how many of such things the groups need, made now or before.
        Raises: KernelError if one cannot be made.
        """
        return 0

    @abstractmethod
    def compile(self, split: Split) -> Program:
        """Make a program of a split; everything is checked here, so that running it cannot touch foreign memory."""


Factory = Callable[..., Backend]  # (settings), or (settings, device=number) where there may be several devices

_BUILT_IN = {name: f"graphrt.backends.{name}:create" for name in ("blas", "cpu", "cuda", "reference", "sim")}


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
    """Make the backend of that name; "cuda1" is the one of cuda's device 1, where a factory takes a device's number.

    Raises: SettingsError, listing what exists, if there is none; PlacementError if it cannot start here.
    """
    factories, kind = available(), name.rstrip("0123456789")
    if name in factories:
        return _factory(factories[name])(settings)
    if kind in factories and name != kind:
        factory = _factory(factories[kind])
        if "device" in inspect.signature(factory).parameters:
            return factory(settings, device=int(name[len(kind) :]))
    raise SettingsError(f'[backend] no backend is called "{name}"; there are: {", ".join(sorted(factories))}')


def _factory(target: str) -> Factory:
    module, _, attribute = target.partition(":")
    factory: Factory = getattr(importlib.import_module(module), attribute)
    return factory
