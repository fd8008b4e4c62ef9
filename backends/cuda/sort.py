"""Launches of argsort and top_k."""

from __future__ import annotations

from graphrt import ops
from graphrt.backends.cuda.elements import THREADS, WARP, blocks, kind
from graphrt.backends.cuda.launch import MOST_BLOCKS, Address, Argument, Launch, Whole, Workspace
from graphrt.backends.cuda.registry import lowering
from graphrt.backends.cuda.units import Unit
from graphrt.tensor import Tensor

RANKED = 128  # the longest rows whose elements are ranked by counting
RUN = 4096  # elements that one block sorts
KEY_BYTES = 8
UNIT = Unit("sort", ["rank_rows", "sort_runs", "merge_runs"], registers=64)


def _row_and_rows(node: Tensor) -> tuple[int, int]:
    (x,) = node.srcs
    assert x is not None
    return x.shape[-1], node.size // node.shape[-1]


def _workspace(node: Tensor) -> int:
    """Keys of all rows, twice, where a row takes several runs."""
    length, rows = _row_and_rows(node)
    return 2 * KEY_BYTES * length * rows if length > RUN else 0


def _order(node: Tensor, *, ascending: bool) -> list[Launch]:
    (x,) = node.srcs
    assert x is not None
    length, rows = _row_and_rows(node)
    if length <= RANKED:
        return [Launch(UNIT.kernel("rank_rows"), [blocks(rows, 4)], [WARP, 4], [node, x, kind(x), ascending])]
    run = min(length, RUN)
    room = 1 << (run - 1).bit_length()
    keys = Workspace() if length > RUN else Address(None)
    sort: list[Argument] = [node, x, keys, run, room, kind(x), ascending]
    threads = min(1024, room // 2)
    launches = [Launch(UNIT.kernel("sort_runs"), [rows, blocks(length, run)], [threads], sort, shared=KEY_BYTES * room)]
    halves = [Workspace(), Workspace(KEY_BYTES * length * rows)]
    while run < length:
        last = 2 * run >= length
        merge: list[Argument] = [node, halves[0], Address(None) if last else halves[1], Whole(rows), length, run]
        launches.append(
            Launch(UNIT.kernel("merge_runs"), [blocks(length), min(rows, MOST_BLOCKS[1])], [THREADS], merge)
        )
        halves.reverse()
        run *= 2
    return launches


@lowering(ops.argsort, workspace=_workspace)
def _(node: Tensor) -> list[Launch]:
    return _order(node, ascending=not node.params["descending"])


@lowering(ops.top_k, workspace=_workspace)
def _(node: Tensor) -> list[Launch]:
    return _order(node, ascending=False)
