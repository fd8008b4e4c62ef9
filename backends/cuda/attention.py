"""Launches of attention to keys and values in a cache."""

from __future__ import annotations

from graphrt import ops
from graphrt.backend import YES, Support
from graphrt.backends.cuda.attention_plan import Attention, Scratch, prepared
from graphrt.backends.cuda.attention_shapes import NATIVE, shape_for
from graphrt.backends.cuda.launch import Launch
from graphrt.backends.cuda.registry import lowering
from graphrt.ops.rope import Rotation
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
    params, scratch = node.params, Scratch()
    turns = None if params["rope"] is None else (params["rope"], rotation, factors)
    joined = _is_joined(k, v, params["rope"])
    group = q.shape[1] // k.shape[1]
    shape = shape_for(q.shape[0], group, k.shape[2], v.shape[2], {k.dtype.name, v.dtype.name}, joined)
    where = [q_pos, q_seq, cell_pos, cell_seq]
    logits = {name: params[name] for name in ("scale", "softcap", "window")}
    attention = Attention(node, q, where, k.shape[1], shape, scratch, sinks, **logits)
    launches, keys = prepared(k, shape.dtype, NATIVE, scratch, cell_pos, turns)
    more, values = ([], keys) if shape.joined else prepared(v, shape.dtype, NATIVE, scratch, cell_pos)
    launches += [*more, *attention.mark(), attention.attend(keys, values), *attention.combine()]
    return launches, scratch.nbytes


def _is_joined(k: Tensor, v: Tensor, rope: Rotation | None) -> bool:
    """Whether v is the first elements of k's rows, none of which turn."""
    same = v.root is k.root and v.offset == k.offset and v.dtype is k.dtype and v.strides == k.strides
    return same and v.shape[2] <= k.shape[2] and (rope is None or rope.first >= v.shape[2])


@lowering(ops.attention, takes=takes, workspace=lambda node: plan(node)[1])
def _(node: Tensor) -> list[Launch]:
    return plan(node)[0]
