"""A memory that is too small for a schedule: the error that says so, with an override under which it would fit.

Overrides are tried, not guessed: a weight that is moved away may be copied back at every run, and takes room then too.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from graphrt.buffer import HOST
from graphrt.errors import PlacementError
from graphrt.layers import layers_of
from graphrt.overrides import layers_to, n_cpu_moe

if TYPE_CHECKING:
    from graphrt.backend import Backend
    from graphrt.schedule import Schedule
    from graphrt.tensor import Tensor

LISTED = 5


def require_room(schedule: Schedule, again: Callable[[str], Schedule]) -> None:
    """Raise PlacementError if a memory's limit is exceeded.

    Args:
        again: makes the schedule once more with an override before all others.
    """
    for backend in schedule.backends:
        if backend.limit is not None and _needed(schedule, backend) > backend.limit:
            raise PlacementError(_explain(schedule, backend, again))


def _needed(schedule: Schedule, backend: Backend) -> int:
    resident = schedule.resident(backend.memory)
    return schedule.memory.sizes.get(backend.memory, 0) + sum(leaf.nbytes for leaf in resident)


def _explain(schedule: Schedule, backend: Backend, again: Callable[[str], Schedule]) -> str:
    """How much is missing, what takes most, and what to do."""
    resident = schedule.resident(backend.memory)
    held = [(leaf.name, leaf.nbytes) for leaf in resident] + schedule.memory.peaks.get(backend.memory, [])
    biggest = sorted(held, key=lambda item: -item[1])[:LISTED]
    listed = ", ".join(f"{name} {nbytes:,} B" for name, nbytes in biggest)
    rule = _fitting(schedule, backend, resident, again)
    remedy = "choose a smaller batch or context, or raise the offload threshold (GRAPH_OP_OFFLOAD_MIN_BATCH)"
    if rule is not None:
        remedy = f'it would fit with "{rule}" as the first override'
    needed = _needed(schedule, backend)
    return (
        f"[memory] {backend.name} holds {backend.limit:,} bytes, {needed:,} are needed; the biggest: {listed}; {remedy}"
    )


def _fitting(
    schedule: Schedule, backend: Backend, resident: Sequence[Tensor], again: Callable[[str], Schedule]
) -> str | None:
    """The first of the overrides that move ever more away under which the rest fits; None if under none."""
    host = next(other.name for other in schedule.backends if other.memory == HOST)
    rules = _ever_more(resident, host)
    limit = backend.limit or 0
    found = bisect_left(rules, True, key=lambda rule: _needed(again(rule), backend) <= limit)
    return rules[found] if found < len(rules) else None


def _ever_more(resident: Sequence[Tensor], host: str) -> list[str]:
    """Overrides by what they move: the experts of the first layers, whole layers, all weights and caches."""
    layers = {leaf: layer for leaf, layer in layers_of(resident).items() if layer is not None}
    with_experts = sorted({layer for leaf, layer in layers.items() if "_exps." in leaf.name})
    experts = [n_cpu_moe(layer + 1, host) for layer in with_experts]
    last = max(layers.values(), default=-1)
    return [*experts, *(layers_to(layer + 1, host) for layer in range(last + 1)), f".={host}"]
