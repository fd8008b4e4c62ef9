"""A memory that is too small for a schedule: the error that says so, with an override under which it would fit.

Overrides are tried, not guessed: a weight that is moved away may be copied back at every run, and takes room then too.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from graphrt.buffer import HOST
from graphrt.errors import MemoryFullError, PlacementError
from graphrt.layers import layers_of
from graphrt.overrides import layers_to, n_cpu_moe

if TYPE_CHECKING:
    from graphrt.backend import Backend
    from graphrt.schedule import Schedule
    from graphrt.tensor import Tensor

LISTED = 5


def require_room(schedule: Schedule) -> None:
    """Raise PlacementError if a memory's limit is exceeded."""
    for backend in schedule.backends:
        limit = backend.limit
        if limit is not None and (needed := _needed(schedule, backend)) > limit:
            advice = _advice(schedule, backend, limit)
            raise PlacementError(f"[memory] {backend.name} holds {limit:,} bytes, {needed:,} are needed; {advice}")


def no_room(schedule: Schedule, error: MemoryFullError, has_already: Callable[[str], int]) -> PlacementError:
    """The error for an allocation that failed though the limit is kept: others use the same memory.

    Args:
        has_already: bytes of a memory that the schedule was given before.
    """
    backend = next(each for each in schedule.backends if each.name == error.backend)
    room = error.free + has_already(backend.memory)
    advice = _advice(schedule, backend, room)
    return PlacementError(f"{error}; this graph needs {_needed(schedule, backend):,} and can have {room:,}; {advice}")


def _needed(schedule: Schedule, backend: Backend) -> int:
    resident = schedule.resident(backend.memory)
    return schedule.memory.sizes.get(backend.memory, 0) + sum(leaf.nbytes for leaf in resident)


def _advice(schedule: Schedule, backend: Backend, room: int) -> str:
    """What takes most of a memory, and what to do."""
    resident = schedule.resident(backend.memory)
    held = [(leaf.name, leaf.nbytes) for leaf in resident] + schedule.memory.peaks.get(backend.memory, [])
    biggest = sorted(held, key=lambda item: -item[1])[:LISTED]
    listed = ", ".join(f"{name} {nbytes:,} B" for name, nbytes in biggest)
    rule = _fitting(schedule, backend, room, resident)
    remedy = "choose a smaller batch or context, or raise the offload threshold (GRAPH_OP_OFFLOAD_MIN_BATCH)"
    if rule is not None:
        remedy = f'it would fit with "{rule}" as the first override'
    return f"the biggest: {listed}; {remedy}"


def _fitting(schedule: Schedule, backend: Backend, room: int, resident: Sequence[Tensor]) -> str | None:
    """The first of the overrides that move ever more away under which the rest fits; None if under none."""
    host = next(other.name for other in schedule.backends if other.memory == HOST)
    rules = _ever_more(resident, host)
    found = bisect_left(rules, True, key=lambda rule: _needed(schedule.again(rule), backend) <= room)
    return rules[found] if found < len(rules) else None


def _ever_more(resident: Sequence[Tensor], host: str) -> list[str]:
    """Overrides by what they move: the experts of the first layers, whole layers, all weights and caches."""
    layers = {leaf: layer for leaf, layer in layers_of(resident).items() if layer is not None}
    with_experts = sorted({layer for leaf, layer in layers.items() if "_exps." in leaf.name})
    experts = [n_cpu_moe(layer + 1, host) for layer in with_experts]
    last = max(layers.values(), default=-1)
    return [*experts, *(layers_to(layer + 1, host) for layer in range(last + 1)), f".={host}"]
