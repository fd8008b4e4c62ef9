"""Where everything of a schedule lies once it has memory: tensors, scratch memory, and both ends of each copy."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from graphrt.backend import Split
from graphrt.buffer import Buffer, Location
from graphrt.memory import MemoryPlan
from graphrt.residents import Residents
from graphrt.schedule import Schedule
from graphrt.splits import SplitNodes
from graphrt.tensor import Tensor
from graphrt.transfer import End, Slot, copy_step


class Locations:
    """A schedule over memory.

    Args:
        memory: where results lie, the schedule's for whole runs or that for runs node by node.
        arenas: the compute buffer of each memory.
        residents: where weights and states are.
    """

    def __init__(
        self, schedule: Schedule, memory: MemoryPlan, arenas: Mapping[str, Buffer], residents: Residents
    ) -> None:
        self.schedule, self.memory, self.arenas = schedule, memory, arenas
        self._residents = residents
        self._backends = {backend.memory: backend for backend in schedule.backends}

    def at_home(self, tensor: Tensor) -> Location:
        """Where a tensor's first element lies in the memory that it is made or kept in."""
        schedule, root = self.schedule, tensor.root
        memory = schedule.placements.memory_of(tensor)
        if not tensor.size:
            return Location(self.arenas[memory], 0)
        if root in self.memory.offsets:
            return Location(self.arenas[memory], self.memory.offsets[root] + tensor.offset)
        return Location(self._residents.buffer(root, schedule.placements.homes.get(root)), tensor.offset)

    def within(self, memory: str, tensor: Tensor) -> Location:
        """Where a tensor's first element lies in a memory: at home, or in the copy that there is for its readers."""
        schedule = self.schedule
        if not tensor.size:
            return Location(self.arenas[memory], 0)
        if schedule.placements.memory_of(tensor) == memory:
            return self.at_home(tensor)
        copy = schedule.copies.find(tensor, memory)
        return Location(self.arenas[memory], self.memory.offsets[copy] + tensor.offset - copy.first)

    def split(self, part: SplitNodes) -> Split:
        """A split with the locations of everything that its nodes touch and that has memory."""
        memory, offsets, inner = part.backend.memory, self.memory.workspaces, self.memory.inner
        location: dict[Tensor, Location] = {}
        for node in part.nodes:
            for tensor in (node, *node.srcs):
                if tensor is not None and tensor not in location and tensor.root not in inner:
                    location[tensor] = self.within(memory, tensor)
        workspace = {node: Location(self.arenas[memory], offsets[node]) for node in part.nodes if node in offsets}
        return Split(part.backend, part.nodes, location, workspace, part.groups)

    def copies_before(self, number: int, slot: Slot) -> list[Callable[[], None]]:
        """What does each of the copies that are due before a split, in order."""
        steps = []
        for copy in self.schedule.copies.before.get(number, ()):
            source = self._end(self.at_home(copy.value).after(copy.first - copy.value.offset))
            target = self._end(Location(self.arenas[copy.memory], self.memory.offsets[copy]))
            chosen = None if copy.experts is None else self._end(self.at_home(copy.experts))
            steps.append(copy_step(copy, source, target, chosen, slot))
        return steps

    def _end(self, place: Location) -> End:
        return End(place, self._backends[place.buffer.memory])
