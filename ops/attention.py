"""Attention over the cells of a cache: T queries, N cells, H query heads, Hkv heads of keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from graphrt import dtypes
from graphrt.dtypes import Array
from graphrt.op import Cost, Meta, op, require
from graphrt.ops.checks import VALUES, describe, present, require_dtype, require_float, require_values
from graphrt.ops.matmul import product_tolerance
from graphrt.ops.rope import Rotation, drawn_rotation, require_rotation, turned
from graphrt.ops.softmax import softmax_of
from graphrt.tensor import Tensor, constant

if TYPE_CHECKING:
    from graphrt.testing import Draw


@op(layout={"k": "rows", "v": "rows"}, tolerance=product_tolerance)
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_pos: Tensor,
    q_seq: Tensor,
    cell_pos: Tensor,
    cell_seq: Tensor,
    sinks: Tensor | None = None,
    cell_rotation: Tensor | None = None,
    freq_factors: Tensor | None = None,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    rope: Rotation | None = None,
) -> Meta:
    """Mix the values of the cells that each query sees: y = softmax(scale · q · kᵀ) · v, head h with h // (H/Hkv).

    Query t sees cell n if the cell is taken (cell_pos[n] >= 0), belongs to its sequence (bit q_seq[t] of cell_seq[n]),
    is not later (cell_pos[n] <= q_pos[t]) and, with a window, is near (q_pos[t] - cell_pos[n] < window).

    With a rotation, the key of cell n counts as if `rope` had turned it by cell_rotation[n] positions: the cell's
    position where keys are kept as they were before rope, or how far a cell moved since its key was turned.

    Args:    q [T, H, Dk] f32|f16|bf16, any strides;  k [N, Hkv, Dk], v [N, Hkv, Dv] floats or quantized, dense rows;
             v may be a view of k's memory;  q_pos [T] i32;  q_seq [T] i32, in 0..63;  cell_pos [N] i32, -1: empty;
             cell_seq [N] i64, one bit for each sequence;  sinks [H] floats: logits that join the denominator;
             cell_rotation [N] i32, in positions, may be negative;  freq_factors [dims/2] f32, as those of rope;
             scale of the logits, usually 1/sqrt(Dk);  window in positions, 0: none;
             softcap c > 0: logits become c · tanh(logits / c), 0: none;
             rope: how keys turn (never v, not even where it is a view of k's memory), given with cell_rotation
    Returns: [T, H, Dv] f32; a query that sees nothing gives zeros
    Raises:  GraphError if shapes or dtypes do not fit, window or softcap is negative, or rope or cell_rotation is
             given without the other
    Source:  Vaswani et al. 2017, arXiv:1706.03762; grouped heads: Ainslie et al. 2023, arXiv:2305.13245
    """
    require_float("attention", q=q, sinks=sinks)
    require_values("attention", k=k, v=v)
    for argument, given in (("q_pos", q_pos), ("q_seq", q_seq), ("cell_pos", cell_pos)):
        require_dtype("attention", argument, given, (dtypes.i32,))
    require_dtype("attention", "cell_seq", cell_seq, (dtypes.i64,))
    require(
        q.rank == k.rank == v.rank == 3,
        f"[attention] needs q [T, H, Dk], k [N, Hkv, Dk] and v [N, Hkv, Dv], got {describe(q)}, {describe(k)} and "
        f"{describe(v)}; reshape them",
    )
    tokens, heads, width = q.shape
    require(
        k.shape[2] == width and k.shape[:2] == v.shape[:2],
        f"[attention] q {describe(q)} and k {describe(k)} must agree in Dk, k and v {describe(v)} in [N, Hkv]",
    )
    cells, kv_heads = k.shape[:2]
    require(
        kv_heads > 0 and heads % kv_heads == 0,
        f"[attention] the {heads} heads of q must be a multiple of the {kv_heads} of k and v; repeat or slice heads",
    )
    require(
        q_pos.shape == q_seq.shape == (tokens,),
        f"[attention] q_pos {describe(q_pos)} and q_seq {describe(q_seq)} must be [T], with T = {tokens} of q",
    )
    require(
        cell_pos.shape == cell_seq.shape == (cells,),
        f"[attention] cell_pos {describe(cell_pos)} and cell_seq {describe(cell_seq)} must be [N], N = {cells} of k",
    )
    if sinks is not None:
        require(sinks.shape == (heads,), f"[attention] sinks {describe(sinks)} must be [H], with H = {heads} of q")
    require_turns("attention", "k", k, cell_rotation, freq_factors, rope)
    require(window >= 0, f"[attention] window must not be negative, got {window}; 0 means none")
    require(softcap >= 0, f"[attention] softcap must not be negative, got {softcap}; 0 means none")
    return Meta(dtypes.f32, (tokens, heads, v.shape[2]))


def require_turns(
    op: str,
    argument: str,
    k: Tensor,
    cell_rotation: Tensor | None,
    freq_factors: Tensor | None,
    rope: Rotation | None,
) -> None:
    """Raise GraphError unless the keys k [N, Hkv, Dk] of an op's argument can turn so."""
    given = (rope is not None, cell_rotation is not None)
    require(
        given[0] == given[1] and (given[0] or freq_factors is None),
        f"[{op}] cell_rotation ({'given' if given[1] else 'absent'}), rope ({'given' if given[0] else 'absent'}) "
        f"and freq_factors ({'absent' if freq_factors is None else 'given'}): give the first two together, the third "
        f"only with them",
    )
    if rope is not None and cell_rotation is not None:
        require_dtype(op, "cell_rotation", cell_rotation, (dtypes.i32,))
        require(
            cell_rotation.shape == k.shape[:1],
            f"[{op}] cell_rotation {describe(cell_rotation)} must be [N], with N = {k.shape[0]} of {argument}",
        )
        require_rotation(op, argument, k, freq_factors, rope)


@attention.reference
def _(
    q: Array,
    k: Array,
    v: Array,
    q_pos: Array,
    q_seq: Array,
    cell_pos: Array,
    cell_seq: Array,
    sinks: Array | None,
    cell_rotation: Array | None,
    freq_factors: Array | None,
    *,
    scale: float,
    window: int,
    softcap: float,
    rope: Rotation | None,
) -> Array:
    tokens, heads, _ = q.shape
    q32, k32, v32 = dtypes.to_f32(q), dtypes.to_f32(k), dtypes.to_f32(v)
    y = np.zeros((tokens, heads, v32.shape[2]), np.float32)
    if y.size == 0 or len(k32) == 0:
        return y
    if rope is not None and cell_rotation is not None:
        k32 = turned(k32, cell_rotation, freq_factors, rope).astype(np.float32)
    seen = visible(q_pos, q_seq, cell_pos, cell_seq, window)  # [T, N]
    v32[~seen.any(axis=0)] = 0.0  # zero weights must hide whatever empty cells hold, infinities too
    group = heads // k32.shape[1]
    for head in range(heads):
        logits = scale * (q32[:, head] @ k32[:, head // group].T).astype(np.float64)  # [T, N]
        if softcap:
            logits = softcap * np.tanh(logits / softcap)
        logits = np.where(seen, logits, -np.inf)
        sink = None if sinks is None else sinks[head : head + 1].astype(np.float64)
        y[:, head] = softmax_of(logits, sink).astype(np.float32) @ v32[:, head // group]
    return y


def visible(q_pos: Array, q_seq: Array, cell_pos: Array, cell_seq: Array, window: int) -> Array:
    """Which cells each query sees, as booleans [T, N]."""
    distance = q_pos.astype(np.int64)[:, None] - cell_pos.astype(np.int64)
    same_sequence = (cell_seq >> q_seq.astype(np.int64)[:, None]) & 1 == 1
    seen: Array = (cell_pos >= 0) & same_sequence & (distance >= 0)
    if window:
        seen = seen & (distance < window)
    return seen


@attention.cost
def _(node: Tensor) -> Cost:
    q, k, v = present(node)[:3]
    tokens, heads, width = q.shape
    products = tokens * heads * k.shape[0] * (width + v.shape[2])
    cache = k.nbytes if v.root is k.root else k.nbytes + v.nbytes
    rope = node.params["rope"]
    turns = 3 * k.shape[0] * k.shape[1] * rope.width(width) if rope else 0
    return Cost(flops=2 * products + turns, nbytes=q.nbytes + cache + node.nbytes, batch=tokens)


@attention.cases
def _(draw: Draw) -> Tensor:
    tokens, cells, kv_heads = draw.choice([draw.integer(0, 9), 40]), draw.choice([draw.side(), 300]), draw.integer(1, 3)
    heads = kv_heads * draw.integer(1, 4)
    k = draw.tensor((cells, kv_heads, draw.choice([8, 33, 64, 300])), VALUES, layout="rows", low=-2.0, high=2.0)
    width = k.shape[-1]
    shared = draw.boolean()
    if shared:
        block = k.dtype.block
        v = k[..., : draw.integer(1, width // block) * block]
    else:
        v = draw.tensor((cells, kv_heads, draw.choice([5, 32, 64])), VALUES, layout="rows")
    rope = draw.choice([None, drawn_rotation(draw, width)])
    pairs = rope.width(width) // 2 if rope else 0
    return attention(
        draw.tensor((tokens, heads, width), low=-2.0, high=2.0),
        k,
        v,
        draw.ids((tokens,), 40),
        draw.ids((tokens,), 3),
        draw.tensor((cells,), dtypes.i32, layout="dense", low=-1, high=30),
        draw.tensor((cells,), dtypes.i64, layout="dense", low=0, high=7),
        draw.tensor((heads,), dtypes.f32, low=-2.0, high=2.0) if draw.boolean() else None,
        drawn_turns(draw, cells) if rope else None,
        draw.tensor((pairs,), dtypes.f32, low=1.0, high=8.0) if rope and draw.boolean() else None,
        scale=width**-0.5,
        window=draw.choice([0, 1, 12]),
        softcap=draw.choice([0.0, 20.0]),
        rope=rope,
    )


def drawn_turns(draw: Draw, cells: int) -> Tensor:
    """Rotations of cells: none, one for all, positions in runs of cells, runs of shifts, or anything."""
    start, cell = draw.choice([0, -7, 100_000]), np.arange(cells)
    kind = draw.choice(["none", "one", "positions", "shifts", "any"])
    if kind == "any":
        return draw.tensor((cells,), dtypes.i32, layout="rows", low=-9, high=1_000_000)
    turns = {"none": 0 * cell, "one": 0 * cell + start, "positions": start + cell, "shifts": start + cell // 50 % 3}[
        kind
    ]
    gap = draw.choice([cells, draw.integer(0, cells)])
    turns[gap:] += draw.integer(-5, 5)
    return constant("cell_rotation", turns.astype(np.int32))
