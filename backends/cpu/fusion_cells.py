"""Fusion of keys' rotation with their way into the cache: what is rotated goes to its cells in their dtype."""

from __future__ import annotations

from functools import partial

from graphrt.backends.cpu.rope import calls
from graphrt.patterns import Coming, Fused
from graphrt.splits import value_of
from graphrt.tensor import Tensor

CACHES = ("f32", "f16", "bf16")  # dtypes that the kernel writes; block-quantized rows are made of whole ones


def rope_and_cells(coming: Coming) -> Fused | None:
    """A rope whose rows, all heads of a token as one, a set_rows alone reads."""
    rope = coming.first
    if rope.op is None or rope.op.name != "rope" or rope.dtype.name != "f32" or rope.rank > 3 or not rope.size:
        return None
    store = next((node for node in coming.after_first() if _stores(node, rope)), None)
    if store is None or not coming.is_ready(store, [rope]) or not coming.readers.are_within(rope, [store]):
        return None
    return Fused((rope, store), "rope and cells", lower=partial(calls, rope, store))


def _stores(node: Tensor, rope: Tensor) -> bool:
    """Whether a set_rows writes one row of a plain table for each of the rope's tokens."""
    if node.op is None or node.op.name != "set_rows" or node.dtype.name not in CACHES:
        return False
    _, rows, cells = node.srcs
    if rows is None or cells is None or value_of(rows) is not rope:
        return False
    if any(src is not None and src.root is node.root for src in rope.srcs):
        return False  # rows would be written that are yet to be read
    tokens = rope.shape[0] if rope.rank == 3 else 1
    is_whole = rows.is_dense and rows.offset == rope.offset and rows.shape == (tokens, rope.size // tokens)
    return is_whole and node.rank == 2 and node.has_dense_rows and cells.shape == (tokens,)
