"""Weights that every run copies to another memory: how many bytes, why, and the override that would save it.

Where a product is offloaded its weight is copied by intent, for a batch that is worth it. Whatever else moves at every
run does so because a rule, or an op that a device lacks, parted a weight from what reads it.
"""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass

from graphrt.copies import Copies, Copy
from graphrt.placement import Placements
from graphrt.tensor import Tensor

WORTH_TELLING = 16 << 10  # bytes in a run; fewer cost no more than it takes to begin a copy
_LAYER = re.compile(r"^blk\.(\d+)\.")


@dataclass(frozen=True)
class MovingWeights:
    """Weights that are alike in all but their layer, and are copied at every run.

    Args:
        name: of the weight; of several, with * for the layer.
        nbytes: copied in a run; of weights by expert, at most.
        source, target: memories.
        reason: why what reads them does not run where they live.
        remedy: the override that keeps them there, or what else would help.
    """

    name: str
    count: int
    nbytes: int
    source: str
    target: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        what = self.name if self.count == 1 else f"{self.name} ({self.count} weights)"
        way = f"from {self.source} to {self.target} at every run"
        return f"{what}: {self.nbytes:,} bytes are copied {way}, because {self.reason}; {self.remedy}"


def moving_weights(placements: Placements, copies: Copies) -> list[MovingWeights]:
    """The weights that are copied at every run though no offload asked for it, in the order of execution."""
    groups: dict[tuple[str, ...], list[Copy]] = {}
    for copy in copies.all():
        readers = [placements.nodes[node] for node in copy.readers]
        if copy.value.root.role == "weight" and readers and not any(reader.offloaded for reader in readers):
            alike = _LAYER.sub("blk.*.", copy.value.root.name)
            key = (alike, placements.memory_of(copy.value), copy.memory, readers[0].backend.name)
            groups.setdefault(key, []).append(copy)
    told = {key: group for key, group in groups.items() if sum(copy.nbytes for copy in group) >= WORTH_TELLING}
    at_home = _read_at_home(placements) if told else set()
    return [
        MovingWeights(
            name=group[0].value.root.name if len(group) == 1 else name,
            count=len(group),
            nbytes=sum(copy.nbytes for copy in group),
            source=source,
            target=target,
            reason=_reason(group[0], placements),
            remedy=_remedy([copy.value.root for copy in group], backend, at_home),
        )
        for (name, source, target, backend), group in told.items()
    ]


def _reason(copy: Copy, placements: Placements) -> str:
    """Why the node that reads a weight runs elsewhere: what the weight's home said to it, or else what placed it."""
    node = copy.readers[0]
    placed, home = placements.nodes[node], placements.homes[copy.value.root].backend
    refused = (words.removeprefix(f"{home.name}: ") for words in placed.rejected if words.startswith(f"{home.name}: "))
    return next(refused, f"{node.name} runs on {placed.backend.name}: {placed.reason}")


def _remedy(weights: Sequence[Tensor], backend: str, at_home: Container[Tensor]) -> str:
    if any(weight in at_home for weight in weights):
        return "both memories read it: bring its readers to one with --override-node"
    return f'"{_rule(weights)}={backend}" as the first override would save that'


def _read_at_home(placements: Placements) -> set[Tensor]:
    """The weights that some node reads where they live."""
    return {
        src.root
        for node, placed in placements.nodes.items()
        for src in node.srcs
        if src is not None and src.root.role == "weight" and placements.memory_of(src) == placed.backend.memory
    }


def _rule(weights: Sequence[Tensor]) -> str:
    """A regex for weights that are alike in all but their layer."""
    layers = [match[1] for match in (_LAYER.match(weight.name) for weight in weights) if match]
    name = re.escape(_LAYER.sub("", weights[0].name))
    if not layers:
        return f"^{name}$"
    return rf"^blk\.{layers[0] if len(layers) == 1 else '(' + '|'.join(layers) + ')'}\.{name}$"
