"""What a model takes in memory at a given context, planned from its shapes alone: no weight is read, no cache made.

The compute buffer is what the scheduler plans for a graph: results, copies and workspaces. A context runs prompts and
decoding in one arena, so the larger of the two counts. Neither graph computes more logits than the last token's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graphrt.backend import Backend
from graphrt.graph import Phase
from graphrt.models.context import Context
from graphrt.schedule import Schedule

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class PhaseUse:
    """The compute buffers of one graph.

    Args:
        phase: a prompt, or decoding.
        tokens: in the graph.
        compute: bytes of the compute buffer, by backend.
        peak: what was alive where that buffer was fullest, with its bytes, the biggest first, by backend.
    """

    phase: Phase
    tokens: int
    compute: Sizes
    peak: Mapping[str, Sequence[tuple[str, int]]]


@dataclass(frozen=True)
class MemoryUse:
    """Bytes by backend; of backends that share a memory the first one stands for all.

    Args:
        n_ctx: cells of the cache.
        weights: those that live there in any phase; the host's are mapped from the file, not allocated.
        kv_cache: the cells' contents.
        cells: the table of the cells' positions, sequences, shifts and tokens, on the host.
        prompt, decode: the graphs of a full ubatch and of one token, over a full cache.
    """

    n_ctx: int
    weights: Sizes
    kv_cache: Sizes
    cells: int
    prompt: PhaseUse
    decode: PhaseUse

    @property
    def compute(self) -> Sizes:
        """The compute buffers: the larger of the two phases'."""
        return {name: max(nbytes, self.decode.compute[name]) for name, nbytes in self.prompt.compute.items()}


def memory_use(context: Context) -> MemoryUse:
    """What a context takes once it is full; nothing of any size is allocated to find out.

    Raises: PlacementError if a memory's limit is exceeded, or no backend supports a node.
    """
    names = _names(context.scheduler.backends)
    ubatch = min(context.ubatch, context.size)
    prompt, decode = (
        context.scheduler.schedule(context.graph(tokens, 1, context.size, phase))
        for tokens, phase in ((ubatch, "prompt"), (1, "decode"))
    )
    return MemoryUse(
        n_ctx=context.size,
        weights=_resident(names, (prompt, decode), "weight"),
        kv_cache=_resident(names, (prompt, decode), "state"),
        cells=context.cells.nbytes,
        prompt=_phase_use(names, prompt, "prompt", ubatch),
        decode=_phase_use(names, decode, "decode", 1),
    )


def _names(backends: Sequence[Backend]) -> dict[str, str]:
    """Each memory, with the first backend that works on it."""
    names: dict[str, str] = {}
    for backend in backends:
        names.setdefault(backend.memory, backend.name)
    return names


def _resident(names: Mapping[str, str], schedules: Sequence[Schedule], role: str) -> Sizes:
    """Bytes of the weights, or of the states, that live in each memory in any of the schedules."""
    found = {}
    for memory, name in names.items():
        leafs = {leaf for schedule in schedules for leaf in schedule.resident(memory)}
        found[name] = sum(leaf.nbytes for leaf in leafs if leaf.role == role)
    return found


def _phase_use(names: Mapping[str, str], schedule: Schedule, phase: Phase, tokens: int) -> PhaseUse:
    memory = schedule.memory
    return PhaseUse(
        phase=phase,
        tokens=tokens,
        compute={name: memory.sizes.get(each, 0) for each, name in names.items()},
        peak={name: sorted(memory.peaks.get(each, ()), key=lambda held: -held[1]) for each, name in names.items()},
    )
