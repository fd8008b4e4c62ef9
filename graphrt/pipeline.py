"""Pipelines: several runs under way at once, so that each device works on one while the next device works on another.

pipeline = Pipeline(depth=2)
for inputs in parts: pipeline.submit(plan, inputs)
first = pipeline.result()                  the results, in order
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakSet

import numpy as np

from graphrt.dtypes import Array
from graphrt.errors import Cancelled, GraphError
from graphrt.events import Event
from graphrt.plan import Plan


@dataclass(frozen=True)
class _Run:
    """A run under way: its outputs hold what they should when the events have passed."""

    plan: Plan
    outputs: list[Array]
    events: list[Event]


class Pipeline:
    """Runs of plans that are begun before those submitted earlier are done; for one thread, but for `cancel`.

    Runs keep their order on every device, so that states (KV caches) pass from one to the next. What a run leaves on
    the host, its staging and its outputs, is there once for each run under way; the devices' memory is shared by all.
    Only asynchronous devices work on while the host submits: a split on the host runs during `submit`, which waits for
    what that split reads.

    Args:
        depth: the most runs under way; the next `submit` waits for the oldest.
    Raises: GraphError if depth is below 1.
    """

    def __init__(self, depth: int = 2) -> None:
        if depth < 1:
            raise GraphError(f"[pipeline] depth is {depth}; it must be 1 or more")
        self.depth = depth
        self._count = 0
        self._cancelled = False
        self._plan: Plan | None = None  # that a submit is beginning
        self._thread = 0
        self._under_way: deque[_Run] = deque()
        self._done: deque[list[Array]] = deque()
        self._said: WeakSet[Plan] = WeakSet()

    def __len__(self) -> int:
        """Runs submitted whose result was not taken."""
        return len(self._under_way) + len(self._done)

    def submit(self, plan: Plan, inputs: Mapping[str, Array] | None = None, /, **named: Array) -> None:
        """Begin a run; inputs as for `Plan.run`, free to be written again when this returns.

        Raises: GraphError for inputs that do not fit; what a run failed with: all that are under way are then dropped.
        """
        while len(self._under_way) >= self.depth:
            self._finish()
        for name, array in {**(inputs or {}), **named}.items():
            plan.set_input(name, np.asarray(array))
        self._say(plan)
        self._count += 1
        self._thread = threading.get_ident()
        plan.forget_cancel()
        self._plan = plan
        try:
            self._check()
            self._under_way.append(_Run(plan, *plan.begin(1 + self._count % self.depth)))
        except BaseException:
            self.abandon()
            raise
        finally:
            self._plan = None

    def result(self) -> list[Array]:
        """The outputs of the oldest run whose result was not taken, in the graph's order.

        Raises: GraphError if there is none; what a run failed with: all that are under way are then dropped.
        """
        if not self._done:
            if not self._under_way:
                raise GraphError("[pipeline] no run is under way; submit one first")
            self._finish()
        return self._done.popleft()

    def cancel(self) -> None:
        """Stop, from any thread: what is under way is dropped, and the present or next submit or result says so."""
        self._cancelled = True
        if self._plan is not None:
            self._plan.cancel()
        for run in tuple(self._under_way):
            run.plan.drop(self._thread)

    def abandon(self) -> None:
        """Drop the runs under way, and wait until the devices have let go of them."""
        self._cancelled = False
        while self._under_way:
            self._under_way.pop().plan.abandon()

    def _say(self, plan: Plan) -> None:
        """GRAPH_SCHED_DEBUG: what a plan's runs take."""
        if plan.sched_debug and plan not in self._said:
            self._said.add(plan)
            staging, outputs = plan.schedule.staging_bytes, sum(output.extent for output in plan.graph.outputs)
            held = f"{staging + outputs:,} bytes on the host for each ({staging:,} staging, {outputs:,} outputs)"
            print(f"pipeline: up to {self.depth} runs under way, {held}", file=sys.stderr)

    def _finish(self) -> None:
        try:
            self._check()
            for event in self._under_way[0].events:
                event.wait()
        except BaseException:
            self.abandon()
            raise
        self._done.append(self._under_way.popleft().outputs)

    def _check(self) -> None:
        if self._cancelled:
            raise Cancelled("[pipeline] it was cancelled; the runs under way are dropped")
