"""Fusions: which nodes the CPU backend runs as one. The patterns stand in the files fusion_*.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from graphrt.backend import Group
from graphrt.backends.cpu.fusion_cells import rope_and_cells
from graphrt.backends.cpu.fusion_norm import add_and_norm
from graphrt.backends.cpu.fusion_products import products_at_once
from graphrt.backends.cpu.fusion_router import router
from graphrt.fusion import Readers
from graphrt.patterns import in_groups
from graphrt.tensor import Tensor


def fuse(nodes: Sequence[Tensor], readers: Readers, threads: int, alone: Callable[[Tensor], Group]) -> list[Group]:
    """The nodes in the groups that run as one, or alone."""
    patterns = (add_and_norm, rope_and_cells, router, partial(products_at_once, threads=threads))
    return in_groups(nodes, readers, patterns, alone)
