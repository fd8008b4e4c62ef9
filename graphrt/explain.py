"""Words for a plan: its splits, and every node with its backend and the reason."""

from __future__ import annotations

from collections.abc import Iterator

from graphrt.plan import Plan
from graphrt.tensor import Tensor


def describe(plan: Plan, level: int = 2) -> str:
    """A plan as text: at level 1 its splits, at 2 every node, at 3 also why other backends were passed over."""
    return "\n".join(_lines(plan, level))


def _lines(plan: Plan, level: int) -> Iterator[str]:
    sizes = f"{len(plan.graph.nodes)} nodes, {len(plan.splits)} splits"
    yield f"graph: {sizes}, compute buffer {plan.compute_bytes:,} bytes"
    for number, part in enumerate(plan.splits):
        yield f"split #{number}: {part.backend.name}, {len(part.nodes)} nodes"
        for node in part.nodes if level >= 2 else []:
            placement = plan.placements[node]
            sources = ", ".join(_short(src) for src in node.srcs if src is not None)
            memory = f", in place of {plan.memory.inplace[node].name}" if node in plan.memory.inplace else ""
            op = node.op.name if node.op else ""
            yield f"  {_short(node)} = {op}({sources}) [{part.backend.name}: {placement.reason}{memory}]"
            for said in placement.rejected if level >= 3 else ():
                yield f"    not {said}"


def _short(tensor: Tensor) -> str:
    return f"{tensor.name or tensor.root.name} {tensor.dtype.name}{list(tensor.shape)} {tensor.nbytes:,} B"
