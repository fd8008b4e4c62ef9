"""Multi-head latent attention (MLA) by expansion: keys and values are made from the latents in passing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from graphrt import dtypes
from graphrt.dtypes import Array
from graphrt.op import Cost, Meta, op, require
from graphrt.ops.attention import drawn_turns, require_turns, visible
from graphrt.ops.checks import VALUES, describe, present, require_dtype, require_float, require_values
from graphrt.ops.matmul import product_tolerance
from graphrt.ops.rope import Rotation, drawn_rotation, turned
from graphrt.ops.softmax import softmax_of
from graphrt.tensor import Tensor

if TYPE_CHECKING:
    from graphrt.testing import Draw


@op(layout={"latent": "rows", "keys": "rows", "values": "rows"}, tolerance=product_tolerance)
def mla_attention(
    q: Tensor,
    latent: Tensor,
    keys: Tensor,
    values: Tensor,
    q_pos: Tensor,
    q_seq: Tensor,
    cell_pos: Tensor,
    cell_seq: Tensor,
    cell_rotation: Tensor | None = None,
    freq_factors: Tensor | None = None,
    *,
    scale: float,
    keys_transposed: bool = False,
    rope: Rotation | None = None,
) -> Meta:
    """Attend to latents as to the keys and values they stand for: y = softmax(scale · q · kᵀ) · v for each head.

    Cell n holds [c | k_pe]: its latent c [r], and the rotated key part k_pe [dr] that all heads share. Head h has the
    key k = [Wk[h] · c | k_pe] and the value v = Wv[h] · c. Queries see cells, and rotated parts turn by cell_rotation,
    as in `attention`. The result is that of the absorbed form, attention to the latents themselves by queries brought
    to their space; expansion takes fewer operations from about r · (dn + dv) / (2r - dn - dv) tokens on.

    Args:    q [T, H, dn+dr] f32|f16|bf16, any strides, the part without rotation first;
             latent [N, 1, r+dr] floats or quantized, dense rows;
             keys Wk [H, dn, r], or with keys_transposed [H, r, dn];  values Wv [H, dv, r]: both floats or quantized,
             dense rows;  q_pos [T] i32;  q_seq [T] i32, in 0..63;  cell_pos [N] i32, -1: empty;
             cell_seq [N] i64, one bit for each sequence;  cell_rotation [N] i32, in positions, may be negative;
             freq_factors [dims/2] f32, as those of rope;  scale of the logits;
             rope: how rows of latent turn, from element r on at the earliest, given with cell_rotation
    Returns: [T, H, dv] f32; a query that sees nothing gives zeros
    Raises:  GraphError if shapes or dtypes do not fit, or rope or cell_rotation is given without the other
    Source:  DeepSeek-V2, arXiv:2405.04434
    """
    require_float("mla_attention", q=q)
    require_values("mla_attention", latent=latent, keys=keys, values=values)
    for argument, given in (("q_pos", q_pos), ("q_seq", q_seq), ("cell_pos", cell_pos)):
        require_dtype("mla_attention", argument, given, (dtypes.i32,))
    require_dtype("mla_attention", "cell_seq", cell_seq, (dtypes.i64,))
    require(
        q.rank == latent.rank == keys.rank == values.rank == 3 and latent.shape[1] == 1,
        f"[mla_attention] needs q [T, H, dn+dr], latent [N, 1, r+dr], keys [H, dn, r] and values [H, dv, r], got "
        f"{describe(q)}, {describe(latent)}, {describe(keys)} and {describe(values)}; reshape them",
    )
    tokens, heads, width = q.shape
    cells, _, row = latent.shape
    rank, nope = values.shape[2], keys.shape[2 if keys_transposed else 1]
    require(
        keys.shape == ((heads, rank, nope) if keys_transposed else (heads, nope, rank)) and values.shape[0] == heads,
        f"[mla_attention] keys {describe(keys)} must be {'[H, r, dn]' if keys_transposed else '[H, dn, r]'}, with "
        f"H = {heads} of q and r = {rank} of values {describe(values)}, which is [H, dv, r]; "
        f"keys_transposed={not keys_transposed} swaps the last two axes",
    )
    require(
        width - nope == row - rank >= 0,
        f"[mla_attention] q {describe(q)} has {width} - {nope} = {width - nope} rotated elements beside dn = {nope} of "
        f"keys, latent {describe(latent)} has {row} - {rank} = {row - rank} beside r = {rank}; they must agree",
    )
    require(
        q_pos.shape == q_seq.shape == (tokens,),
        f"[mla_attention] q_pos {describe(q_pos)} and q_seq {describe(q_seq)} must be [T], with T = {tokens} of q",
    )
    require(
        cell_pos.shape == cell_seq.shape == (cells,),
        f"[mla_attention] cell_pos {describe(cell_pos)} and cell_seq {describe(cell_seq)} must be [N], with "
        f"N = {cells} of latent",
    )
    require_turns("mla_attention", "latent", latent, cell_rotation, freq_factors, rope)
    require(
        rope is None or rope.first >= rank,
        f"[mla_attention] rope begins at element {rope.first if rope else 0} of latent {describe(latent)}, inside the "
        f"r = {rank} that are expanded; pass first={rank}",
    )
    return Meta(dtypes.f32, (tokens, heads, values.shape[1]))


@mla_attention.reference
def _(
    q: Array,
    latent: Array,
    keys: Array,
    values: Array,
    q_pos: Array,
    q_seq: Array,
    cell_pos: Array,
    cell_seq: Array,
    cell_rotation: Array | None,
    freq_factors: Array | None,
    *,
    scale: float,
    keys_transposed: bool,
    rope: Rotation | None,
) -> Array:
    q32, cache, wk, wv = (dtypes.to_f32(each) for each in (q, latent, keys, values))
    y = np.zeros((len(q32), len(wv), wv.shape[1]), np.float32)
    if y.size == 0 or len(cache) == 0:
        return y
    if rope is not None and cell_rotation is not None:
        cache = turned(cache, cell_rotation, freq_factors, rope).astype(np.float32)
    seen = visible(q_pos, q_seq, cell_pos, cell_seq, 0)  # [T, N]
    cache[~seen.any(axis=0)] = 0.0  # what empty cells hold must not matter, infinities too
    c, k_pe = np.split(cache[:, 0], [wv.shape[2]], axis=1)  # [N, r], [N, dr]
    for head in range(len(wv)):
        k_nope = c @ (wk[head] if keys_transposed else wk[head].T)  # [N, dn]
        k = np.concatenate([k_nope, k_pe], axis=1)  # [N, dn+dr]
        logits = np.where(seen, scale * (q32[:, head] @ k.T).astype(np.float64), -np.inf)  # [T, N]
        y[:, head] = softmax_of(logits, None).astype(np.float32) @ (c @ wv[head].T)
    return y


@mla_attention.cost
def _(node: Tensor) -> Cost:
    q, latent, keys, values = present(node)[:4]
    tokens, heads, width = q.shape
    expansion = keys.size + values.size
    products = latent.shape[0] * (expansion + tokens * heads * (width + values.shape[1]))
    rope = node.params["rope"]
    turns = 3 * latent.shape[0] * rope.width(latent.shape[2]) if rope else 0
    nbytes = q.nbytes + latent.nbytes + keys.nbytes + values.nbytes + node.nbytes
    return Cost(flops=2 * products + turns, nbytes=nbytes, batch=tokens)


@mla_attention.cases
def _(draw: Draw) -> Tensor:
    tokens, cells, heads = draw.choice([draw.integer(0, 9), 40]), draw.choice([draw.side(), 300]), draw.integer(1, 3)
    # Of fewer values, all may come near zero by chance, where rounding would look like error.
    nope, value = draw.choice([1, 8, 32, 33, 64]), draw.choice([8, 33, 64])
    latent_dtype = draw.choice(VALUES)
    rope = draw.choice([0, 2, 8, 32])
    weights = [draw.choice(VALUES) for _ in range(2)]
    rank = draw.choice([1, 24, 33, 64]) if not any(each.is_quantized for each in (latent_dtype, *weights)) else 256
    if latent_dtype.is_quantized:
        rope = latent_dtype.block
    transposed = draw.boolean() and nope % weights[0].block == 0
    latent = draw.tensor((cells, 1, rank + rope), latent_dtype, layout="rows", low=-2.0, high=2.0)
    turning = replace(drawn_rotation(draw, rope), first=rank, dims=rope) if draw.boolean() else None
    return mla_attention(
        draw.tensor((tokens, heads, nope + rope), low=-2.0, high=2.0),
        latent,
        draw.tensor((heads, rank, nope) if transposed else (heads, nope, rank), weights[0], layout="rows"),
        draw.tensor((heads, value, rank), weights[1], layout="rows"),
        draw.ids((tokens,), 40),
        draw.ids((tokens,), 3),
        draw.tensor((cells,), dtypes.i32, layout="dense", low=-1, high=30),
        draw.tensor((cells,), dtypes.i64, layout="dense", low=0, high=7),
        drawn_turns(draw, cells) if turning else None,
        draw.tensor((rope // 2,), dtypes.f32, low=1.0, high=8.0) if turning and draw.boolean() else None,
        scale=(nope + rope) ** -0.5 * rank**-0.5,
        keys_transposed=transposed,
        rope=turning,
    )
