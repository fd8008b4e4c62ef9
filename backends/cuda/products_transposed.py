"""Launches of products with matrices as they are stored, not transposed, with few rows of x."""

from __future__ import annotations

from math import prod

from graphrt.backends.cuda.blocks import number_of
from graphrt.backends.cuda.launch import Address, Argument, Launch, Whole, Workspace
from graphrt.backends.cuda.prepared import expanded, pitch_of
from graphrt.backends.cuda.units import Unit
from graphrt.tensor import Tensor

COLUMNS, WIDTH = 4, 64  # as in transposed.cu

OFTEN = ("f32", "f16", "bf16", "q8_0", "q4_0")  # dtypes with instances of their own
UNIT = Unit("transposed", [f"transposed<{w}>" for w in (*OFTEN, "by_number")], registers=160)


def workspace(node: Tensor) -> int:
    """Bytes of workspace: for x in float32."""
    x = node.srcs[1]
    assert x is not None
    return 0 if _is_direct(x) else prod(x.shape[:-1]) * pitch_of(x) * 4


def launches(node: Tensor) -> list[Launch]:
    """The launches of a mul_mat_transposed with few rows of x."""
    w, x = node.srcs
    assert w is not None
    assert x is not None
    count = node.size // node.shape[-1] if prod(w.shape[:-2]) == 1 else x.shape[-2]
    outer, inner = (1, 1, *x.shape)[-4:-2]
    x_rows: Argument = Address(None) if _is_direct(x) else Workspace()
    product = Launch(
        UNIT.kernel(f"transposed<{w.dtype if w.dtype.name in OFTEN else 'by_number'}>"),
        [-(-node.shape[-1] // WIDTH), -(-count // COLUMNS), node.size // node.shape[-1] // count],
        [256],
        [node, w, x, x_rows, Whole(pitch_of(x)), count, outer, inner, number_of(w.dtype)],
    )
    return [product] if _is_direct(x) else [expanded(x), product]


def _is_direct(x: Tensor) -> bool:
    return x.shape[-1] == 0 or (x.dtype.name == "f32" and x.has_dense_rows)
