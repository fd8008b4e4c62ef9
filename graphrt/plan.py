"""A plan: a schedule with memory and compiled programs; it runs any number of times."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from functools import cached_property
from typing import TypeVar

import numpy as np

from graphrt import dtypes
from graphrt.backend import Split
from graphrt.buffer import HOST, Buffer
from graphrt.copies import Copy
from graphrt.dtypes import Array
from graphrt.errors import Cancelled, GraphError
from graphrt.events import Event
from graphrt.locations import Locations, Step
from graphrt.memory import MemoryPlan
from graphrt.numerics import execute_watched
from graphrt.placement import Placement
from graphrt.profile import Profile, execute_timed, measure
from graphrt.residents import Residents
from graphrt.schedule import Schedule
from graphrt.tensor import Tensor
from graphrt.transfer import Arrivals, Slot

Watch = Callable[[Tensor, Array], bool | None]
Result = TypeVar("Result")
Allocate = Callable[[MemoryPlan], Mapping[str, Buffer]]


class Plan:
    """A compiled graph.

    `run` takes the inputs and returns the outputs. The faster way for a loop: keep `input(name)` and `output(i)`,
    which are arrays over the plan's own memory, write the one, call `execute()`, read the other.

    Args:
        allocate: makes the arenas for a memory plan, of the schedule's two.
        check_numerics: 1 stops a run at the first result that is not finite, 2 also at one that the reference denies.
        sched_debug: 1 lets pipelines say on stderr what they hold, 3 prints what each split's program consists of, 4
            runs node by node and prints what each took.
    """

    def __init__(
        self,
        schedule: Schedule,
        allocate: Allocate,
        residents: Residents,
        *,
        check_numerics: int = 0,
        sched_debug: int = 0,
    ) -> None:
        self.schedule = schedule
        self.graph = schedule.graph
        self._allocate, self._residents = allocate, residents
        locations = Locations(schedule, schedule.memory, allocate(schedule.memory), residents)
        self._locations = self._latest = locations
        self._devices = [backend for backend in schedule.backends if backend.asynchronous]
        self._slot = Slot()
        self._steps: list[Step] = []
        arrivals: Arrivals = {}
        for number, part in enumerate(schedule.splits):
            self._steps += locations.steps_before(number, self._slot, arrivals)
            program = part.backend.compile(locations.split(part))
            self._steps.append(program.run)
            if sched_debug >= 3 and program.summary:
                print(f"split #{number}: {part.backend.name}, {program.summary}", file=sys.stderr)
        self._all_steps = [*self._steps, *locations.copies_before(len(schedule.splits), self._slot)]
        self._inputs = {name: locations.within(HOST, leaf).array(leaf) for name, leaf in self.graph.inputs.items()}
        self._cancelled = False
        self._thread: int | None = None
        self._check_numerics = check_numerics
        self.sched_debug = sched_debug

    @property
    def compute_bytes(self) -> int:
        """Size of the compute buffers: every result, input, copy and workspace of the graph."""
        return self.schedule.compute_bytes

    @property
    def placements(self) -> Mapping[Tensor, Placement]:
        """Where each node that computes runs, and why."""
        return self.schedule.placements.nodes

    def input(self, name: str) -> Array:
        """The memory of an input, to be written before `execute`.

        Raises: GraphError, listing the inputs, if there is none of that name.
        """
        if name not in self._inputs:
            raise GraphError(f'[plan] no input is called "{name}"; there are: {", ".join(self._inputs) or "none"}')
        return self._inputs[name]

    def output(self, index: int = 0) -> Array:
        """The memory of an output, on the host, to be read after `execute` and before the next.

        Of a state that lives on a device, a copy of what it holds now.
        """
        tensor = self.graph.outputs[index]
        if tensor.root.role == "state" and self.schedule.placements.memory_of(tensor) != HOST:
            return self.value(tensor)
        return self._locations.within(HOST, tensor).array(tensor)

    def execute(self) -> None:
        """Run every split once over what the inputs hold now.

        Raises: Cancelled if `cancel` was called, at the next split or copy; NumericsError where numerics are checked.
        """
        if self._check_numerics:
            execute_watched(self, compare=self._check_numerics > 1)
            return
        if self.sched_debug >= 4:
            print(execute_timed(self), file=sys.stderr)
            return
        self._go(self._all_steps, self._synchronize)

    def begin(self, slot: int) -> tuple[list[Array], list[Event]]:
        """Begin a run over what the inputs hold now, which may be written again afterwards; a Pipeline's way to run.

        Args:
            slot: from 1 on, a number of its own for each run under way.
        Returns: the outputs, in memory of their own, and the events after which they hold what they should.
        Raises: as `execute`.
        """
        if self._check_numerics or self.sched_debug >= 4:
            self.execute()
            return [self.output(i).copy() for i in range(len(self.graph.outputs))], []
        self._slot.number = slot
        try:
            return self._go(self._steps, self._begin_outputs)
        finally:
            self._slot.number = 0

    def cancel(self) -> None:
        """Stop the present run, from any thread, at its next split or copy; if there is none, the next one."""
        self._cancelled = True
        if self._thread is not None:
            self.drop(self._thread)

    def forget_cancel(self) -> None:
        """Take back a `cancel` that no run has met."""
        self._cancelled = False

    def drop(self, thread: int) -> None:
        """Leave undone what a thread of the host has begun on the plan's devices and they have not."""
        for device in self._devices:
            device.drop(thread)

    def abandon(self) -> None:
        """Drop what this thread has begun on the plan's devices, wait for the rest, and forget what failed."""
        self.drop(threading.get_ident())
        for device in self._devices:
            with suppress(Exception):  # whoever abandons a run knows why
                device.synchronize()

    def observe(self, watch: Watch) -> None:
        """Run node by node, and show each result to `watch(node, array)`; a return of False stops the run.

        Raises: Cancelled if watch returned False.
        """
        with closing(self.steps_by_node()) as steps:
            for item, step in steps:
                step()
                if isinstance(item, Tensor) and watch(item, self.value(item)) is False:
                    raise Cancelled(f"[plan] the run was stopped after {item.name}")

    def steps_by_node(self) -> Generator[tuple[Tensor | Copy, Step], None, None]:
        """Every copy and node in the order of execution, each with what runs it alone; to be closed if not exhausted.

        Where nodes are fused, this goes by a memory plan of its own, in which every result has room.

        Raises: Cancelled if `cancel` was called, at the next one.
        """
        try:
            self._latest = self._by_node
            self._carry(self.graph.inputs.values(), self._locations, self._by_node)
            for item, step in self._single_steps:
                if self._cancelled:
                    raise _cancelled()
                yield item, step
            self._synchronize()
            self._carry(self.graph.outputs, self._by_node, self._locations)
        except BaseException:
            self.abandon()
            raise
        finally:
            self._cancelled = False

    def profile(self, repeats: int = 5) -> Profile:
        """Time every node and copy over what the inputs hold now; what the graph writes is written again each time."""
        return measure(self, repeats)

    def value(self, tensor: Tensor) -> Array:
        """A copy of a tensor's elements as the latest run left them, wherever they lie."""
        place = (self._locations if tensor.root.is_leaf else self._latest).at_home(tensor)
        return tensor.array_over(np.array(place.buffer.read(place.offset, tensor.extent))).copy()

    def source(self, node: Tensor, src: Tensor) -> Array:
        """What a node would read as one of its sources now: of a result in another memory, what was copied from it."""
        if src.root.is_leaf:
            return self.value(src)
        place = self._latest.within(self.placements[node].backend.memory, src)
        return src.array_over(np.array(place.buffer.read(place.offset, src.extent)))

    def sources(self, node: Tensor) -> list[Array | None]:
        """What a node would read as its sources now; ask before it runs, for it may take over the memory of one."""
        return [None if src is None else self.source(node, src) for src in node.srcs]

    def poison_freed(self, node: Tensor) -> None:
        """Overwrite what nothing should read after a node in a run node by node; a test's way to find who does."""
        for memory, start, nbytes in self._by_node.memory.freed.get(node, ()):
            self._by_node.arenas[memory].write(start, np.full(nbytes, 0xFF, np.uint8))

    def run(self, inputs: Mapping[str, Array] | None = None, /, **named: Array) -> list[Array]:
        """Set inputs, run, and return copies of the outputs, in the graph's order.

        An input that is not given keeps the bytes of the run before (zeros at first).
        Raises: GraphError if an array's shape or dtype does not fit its input.
        """
        for name, array in {**(inputs or {}), **named}.items():
            self.set_input(name, np.asarray(array))
        self.execute()
        return [self.output(i).copy() for i in range(len(self.graph.outputs))]

    def set_input(self, name: str, array: Array) -> None:
        """Write an input.

        Raises: GraphError if the array's shape or dtype does not fit.
        """
        memory = self.input(name)
        if array.shape != memory.shape:
            raise GraphError(f'[plan] input "{name}" has shape {list(memory.shape)}, got {list(array.shape)}')
        if array.dtype != memory.dtype and not np.can_cast(array.dtype, memory.dtype, "same_kind"):
            raise GraphError(
                f'[plan] input "{name}" is {dtypes.of(memory)}, got an array of {array.dtype}; convert it with .astype'
            )
        memory[...] = array

    # -- running -----------------------------------------------------------------------------------------------------

    def _go(self, steps: Sequence[Step], end: Callable[[], Result]) -> Result:
        """Take the steps one after the other, then end the run; leave nothing behind on the devices if it fails."""
        self._thread = threading.get_ident()
        self._latest = self._locations
        try:
            for step in steps:
                if self._cancelled:
                    raise _cancelled()
                step()
            return end()
        except BaseException:
            self.abandon()
            raise
        finally:
            self._thread = None
            self._cancelled = False

    def _synchronize(self) -> None:
        for device in self._devices:
            device.synchronize()

    def _begin_outputs(self) -> tuple[list[Array], list[Event]]:
        arrays = []
        for output in self.graph.outputs:
            array, place = np.empty(output.extent, np.uint8), self._locations.at_home(output)
            label = f"{output.name} ({output.nbytes:,} bytes) from {place.buffer.memory} to {HOST}"
            place.buffer.begin_read(place.offset, array, label)
            arrays.append(output.array_over(array))
        return arrays, [device.record() for device in self._devices]

    @cached_property
    def _by_node(self) -> Locations:
        """Where everything lies in runs node by node."""
        memory = self.schedule.memory_by_node
        if memory is self.schedule.memory:
            return self._locations
        return Locations(self.schedule, memory, self._allocate(memory), self._residents)

    def _carry(self, tensors: Iterable[Tensor], source: Locations, target: Locations) -> None:
        """Bring inputs or outputs from where one kind of run has them to where the other does, which may overlap."""
        if source is target:
            return
        moved = [t for t in tensors if t.size and t.root.role in ("input", "node") and not t.root.has_data]
        arrays = [source.within(HOST, tensor).array(tensor).copy() for tensor in moved]
        for tensor, array in zip(moved, arrays, strict=True):
            target.within(HOST, tensor).array(tensor)[...] = array

    @cached_property
    def _single_steps(self) -> list[tuple[Tensor | Copy, Step]]:
        steps: list[tuple[Tensor | Copy, Step]] = []
        copies, places = self.schedule.copies.before, self._by_node
        for number, part in enumerate(self.schedule.splits):
            steps += zip(copies.get(number, ()), places.copies_before(number, self._slot), strict=True)
            split = places.split(part)
            for node in part.nodes:
                alone = Split(part.backend, [node], split.location, split.workspace)
                steps.append((node, part.backend.compile(alone).run))
        last = len(self.schedule.splits)
        steps += zip(copies.get(last, ()), places.copies_before(last, self._slot), strict=True)
        return steps


def _cancelled() -> Cancelled:
    return Cancelled("[plan] the run was cancelled; the next one starts afresh")
