"""Launches of attention to keys and values in a cache."""

from __future__ import annotations

from graphrt import ops
from graphrt.backend import YES, Support
from graphrt.backends.cuda.attention_plan import Attention, Rows, Scratch, Shape, convert
from graphrt.backends.cuda.launch import Launch
from graphrt.backends.cuda.registry import lowering
from graphrt.tensor import Tensor

WIDEST = 2560  # of keys and values together, whose queries and mixes fit into 80 KiB of shared memory


def takes(node: Tensor) -> Support:
    """Whether rows are narrow enough."""
    width = node.srcs[0].shape[2] + node.shape[2]
    if width > WIDEST:
        return Support(False, f"keys and values of {width} elements, kernels hold {WIDEST}", "split the heads")
    return YES


def plan(node: Tensor) -> tuple[list[Launch], int]:
    """The launches of a node, and the bytes of its workspace."""
    q, k, v, q_pos, q_seq, cell_pos, cell_seq, sinks, rotation, factors = node.srcs
    params, scratch, launches = node.params, Scratch(), []
    turns = None if params["rope"] is None else (params["rope"], rotation, factors)
    attention = Attention(
        node,
        q,
        [q_pos, q_seq, cell_pos, cell_seq],
        k.shape[1],
        Shape(8, 64),
        scratch,
        sinks,
        params["scale"],
        params["softcap"],
        params["window"],
    )
    sources = []
    for x, turn in ((k, turns), (v, None)):
        rows = Rows.of(x)
        if x.dtype.name != "f32" or turn:
            launch, rows = convert(x, "f32", scratch, cell_pos, turn)
            launches.append(launch)
        sources.append(rows)
    launches += [attention.mark(), attention.attend(*sources), *attention.combine()]
    return launches, scratch.nbytes


@lowering(ops.attention, takes=takes, workspace=lambda node: plan(node)[1])
def _(node: Tensor) -> list[Launch]:
    return plan(node)[0]
