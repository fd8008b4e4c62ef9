"""Where everything of a schedule lies once it has memory: tensors, scratch memory, and both ends of each copy."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from graphrt.backend import Backend, Split
from graphrt.buffer import Buffer, Location
from graphrt.copies import Copy
from graphrt.memory import MemoryPlan
from graphrt.residents import Residents
from graphrt.schedule import Schedule
from graphrt.splits import SplitNodes
from graphrt.tensor import Tensor
from graphrt.transfer import (
    Arrivals,
    End,
    Placed,
    QueuedCopy,
    Slot,
    arrival_step,
    copy_step,
    in_rows,
    queue_step,
    row_step,
)

Step = Callable[[], None]


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

    def copies_before(self, number: int, slot: Slot) -> list[Step]:
        """What does each of the copies that are due before a split, in order, and none of them ahead."""
        return [self._in_turn(copy, slot) for copy in self.schedule.copies.before.get(number, ())]

    def steps_before(self, number: int, slot: Slot, arrivals: Arrivals) -> list[Step]:
        """What is to be done before a split runs, copies that go on beside it included."""
        queued: dict[Backend, list[QueuedCopy]] = {}
        for copy in self.schedule.copies.beginning_with(number):
            if copy.is_queued:
                source, target = self._ends(copy)
                job = QueuedCopy(copy, source.place, target.place, self._chosen(copy))
                queued.setdefault(target.backend, []).append(job)
        steps = [queue_step(jobs, device, arrivals) for device, jobs in queued.items()]
        due = self.schedule.copies.before.get(number, ())
        for row in in_rows(Placed(copy, *self._ends(copy)) for copy in due if not copy.is_queued):
            steps.append(self._in_turn(row[0].copy, slot) if len(row) == 1 else row_step(row, slot))
        if any(copy.is_queued for copy in due):
            steps.append(arrival_step(number, self.schedule.splits[number].backend, arrivals))
        return steps

    def _in_turn(self, copy: Copy, slot: Slot) -> Step:
        source, target = self._ends(copy)
        return copy_step(copy, source, target, self._chosen(copy), slot)

    def _ends(self, copy: Copy) -> tuple[End, End]:
        """Where a copy's first byte comes from and goes to."""
        source = self._end(self.at_home(copy.value).after(copy.first - copy.value.offset))
        return source, self._end(Location(self.arenas[copy.memory], self.memory.offsets[copy]))

    def _chosen(self, copy: Copy) -> End | None:
        return None if copy.experts is None else self._end(self.at_home(copy.experts))

    def _end(self, place: Location) -> End:
        return End(place, self._backends[place.buffer.memory])
