"""Placement: a backend and a reason in words for every node."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from graphrt.backend import Backend
from graphrt.errors import PlacementError, SettingsError
from graphrt.graph import Graph
from graphrt.tensor import Tensor


@dataclass(frozen=True)
class Placement:
    """Where a node runs, why, and what the backends that were passed over said."""

    backend: Backend
    reason: str
    rejected: tuple[str, ...] = ()


@dataclass
class Override:
    """A rule `regex=backend` over weights' names; `matches` counts the weights it placed."""

    pattern: re.Pattern[str]
    backend: str
    text: str
    matches: int = field(default=0, compare=False)


def parse_overrides(rules: Iterable[str], backends: Sequence[Backend]) -> list[Override]:
    """Read rules `regex=backend`; the last '=' splits, so that a pattern may hold commas, braces and equals signs.

    Raises: SettingsError that quotes the rule, for a bad regex or a backend that is not there.
    """
    names = {backend.name.lower(): backend.name for backend in backends}
    parsed = []
    for rule in rules:
        pattern, equals, name = rule.rpartition("=")
        if not equals or not pattern:
            raise SettingsError(f'[override] "{rule}" is not of the form regex=backend')
        if name.strip().lower() not in names:
            raise SettingsError(
                f'[override] "{rule}": no backend is called "{name.strip()}"; there are: {", ".join(names.values())}'
            )
        try:
            parsed.append(Override(re.compile(pattern), names[name.strip().lower()], rule))
        except re.error as error:
            raise SettingsError(f'[override] "{rule}": the pattern is not a regular expression: {error}') from error
    return parsed


def place(graph: Graph, backends: Sequence[Backend], overrides: Sequence[Override]) -> dict[Tensor, Placement]:
    """Give every node that computes a backend: an override of one of its weights, else the first that supports it.

    Views take no backend: they are places in another tensor's memory.
    Raises: PlacementError if no backend supports a node, with each one's reason and remedy.
    """
    by_name = {backend.name: backend for backend in backends}
    chosen = {leaf: rule for leaf in graph.leafs if leaf.role == "weight" for rule in _first_match(leaf, overrides)}
    for rule in overrides:
        rule.matches = sum(1 for used in chosen.values() if used is rule)
        if not rule.matches:
            warnings.warn(f'[override] "{rule.text}" matches no weight of this graph', stacklevel=2)
    return {
        node: _place_node(node, backends, by_name, chosen)
        for node in graph.nodes
        if node.op is not None and node.op.kind != "view"
    }


def _first_match(leaf: Tensor, overrides: Sequence[Override]) -> list[Override]:
    return [rule for rule in overrides if rule.pattern.search(leaf.name)][:1]


def _place_node(
    node: Tensor, backends: Sequence[Backend], by_name: dict[str, Backend], chosen: dict[Tensor, Override]
) -> Placement:
    rejected = []
    for src in node.srcs:
        rule = chosen.get(src.root) if src is not None else None
        if rule is None:
            continue
        answer = by_name[rule.backend].supports(node)
        if answer:
            return Placement(by_name[rule.backend], f'override "{rule.text}"')
        rejected.append(f'override "{rule.text}": {answer.reason}')
    for backend in backends:
        answer = backend.supports(node)
        if answer:
            return Placement(backend, "; ".join(rejected) or "first backend that supports it", tuple(rejected))
        rejected.append(f"{backend.name}: {answer.reason}" + (f" ({answer.remedy})" if answer.remedy else ""))
    raise PlacementError(f"[{node.op.name if node.op else ''}] no backend can run {node!r}: {'; '.join(rejected)}")
