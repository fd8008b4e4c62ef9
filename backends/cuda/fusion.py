"""Fusions: which nodes the cuda backend runs as one. The patterns stand in the files fusion_*.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphrt.backend import Group
from graphrt.backends.cuda.fusion_cells import queries_and_cells
from graphrt.backends.cuda.fusion_norm import add_and_norm
from graphrt.backends.cuda.fusion_products import products_of_one_x
from graphrt.backends.cuda.fusion_router import router
from graphrt.fusion import Readers
from graphrt.patterns import in_groups
from graphrt.tensor import Tensor

PATTERNS = (products_of_one_x, add_and_norm, router, queries_and_cells)


def fuse(nodes: Sequence[Tensor], readers: Readers, alone: Callable[[Tensor], Group]) -> list[Group]:
    """The nodes in the groups that run as one, or alone."""
    return in_groups(nodes, readers, PATTERNS, alone)
