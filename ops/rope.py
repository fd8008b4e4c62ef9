"""Rotary position embedding, with linear scaling, YaRN, and factors for each frequency."""

from __future__ import annotations

from math import ceil, floor, log, pi
from typing import TYPE_CHECKING, Any

import numpy as np

from graphrt import dtypes
from graphrt.dtypes import Array
from graphrt.op import Cost, Meta, op, require
from graphrt.ops.checks import describe, like, present, require_dtype, require_float, rounded
from graphrt.tensor import Tensor

if TYPE_CHECKING:
    from graphrt.testing import Draw


@op(inplace=["x"])
def rope(
    x: Tensor,
    positions: Tensor,
    freq_factors: Tensor | None = None,
    *,
    mode: str = "normal",
    dims: int = 0,
    base: float = 1e4,
    freq_scale: float = 1.0,
    ext_factor: float = 0.0,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    original_context: int = 0,
    magnitude: float = 1.0,
) -> Meta:
    """Turn pairs of elements, the more the later the position: (a, b) -> magnitude · (a cos - b sin, a sin + b cos).

    Pair i of token t turns by positions[t] · frequencies(...)[i] / freq_factors[i]; see `frequencies` for the formula.

    Args:    x [..., T, H, D] f32|f16|bf16, any strides;  positions [T] i32;  freq_factors [dims/2] f32, 1 where absent;
             mode "normal": pairs (2i, 2i+1), "neox": pairs (i, i + dims/2);  dims rotated ones of D, 0: all;
             base of the frequencies;  freq_scale on positions, 1/factor of the longer context;
             ext_factor of YaRN's ramp, 0: none;  beta_fast, beta_slow where the ramp ends, in turns over
             original_context tokens;  magnitude on cosine and sine (YaRN's factor is given here: none is hidden)
    Returns: [..., T, H, D] in x's dtype; angles are exact to f32 at any position
    Raises:  GraphError if shapes do not fit, dims is odd or exceeds D, or a parameter is out of range
    Source:  Su et al. 2021, arXiv:2104.09864; Peng et al. 2023 (YaRN), arXiv:2309.00071
    """
    require_float("rope", x=x)
    require_dtype("rope", "positions", positions, (dtypes.i32,))
    require(x.rank >= 3, f"[rope] x must be [..., T, H, D], got {describe(x)}; add axes with reshape")
    require(
        positions.shape == x.shape[-3:-2],
        f"[rope] positions {describe(positions)} must be [T], with T = {x.shape[-3]} of x {describe(x)}",
    )
    rotated = dims or x.shape[-1]
    require(
        0 <= rotated <= x.shape[-1] and rotated % 2 == 0,
        f"[rope] dims {rotated} must be even and at most the last axis of x {describe(x)}; pass dims=",
    )
    if freq_factors is not None:
        require_dtype("rope", "freq_factors", freq_factors, (dtypes.f32,))
        require(
            freq_factors.shape == (rotated // 2,),
            f"[rope] freq_factors {describe(freq_factors)} must be [{rotated // 2}]: one for each pair of {rotated}",
        )
    require(mode in ("normal", "neox"), f'[rope] mode must be "normal" or "neox", got {mode!r}')
    require(base > 0 and freq_scale > 0, f"[rope] base and freq_scale must be positive, got {base} and {freq_scale}")
    require(
        ext_factor == 0 or (original_context > 0 and base > 1 and beta_fast >= beta_slow > 0),
        f"[rope] YaRN (ext_factor {ext_factor}) needs original_context > 0, base > 1 and beta_fast >= beta_slow > 0, "
        f"got {original_context}, {base}, {beta_fast} and {beta_slow}",
    )
    return like(x)


def frequencies(
    *,
    dims: int,
    base: float,
    freq_scale: float = 1.0,
    ext_factor: float = 0.0,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    original_context: int = 0,
) -> Array:
    """The angle of each pair at position 1: theta_i · (freq_scale · (1 - ramp_i) + ramp_i), theta_i = base^(-2i/dims).

    ramp_i falls from ext_factor (fast pairs keep their speed) to 0 (slow pairs are scaled) between the two pairs that
    make beta_fast and beta_slow turns over original_context tokens; without ext_factor all pairs are scaled.

    Args:    as those of rope, with dims > 0
    Returns: [dims/2] f64, in radians
    """
    pair = np.arange(dims // 2, dtype=np.float64)
    theta = base ** (-2.0 * pair / dims)
    if ext_factor == 0.0:
        return freq_scale * theta
    low = max(0, floor(_pair_with_turns(beta_fast, dims, base, original_context)))
    high = min(dims - 1, ceil(_pair_with_turns(beta_slow, dims, base, original_context)))
    ramp = ext_factor * (1.0 - np.clip((pair - low) / max(0.001, high - low), 0.0, 1.0))
    return theta * (freq_scale * (1.0 - ramp) + ramp)


def _pair_with_turns(turns: float, dims: int, base: float, original_context: int) -> float:
    """The pair, as a fraction, that makes so many turns over the original context."""
    return dims * log(original_context / (turns * 2 * pi)) / (2 * log(base))


@rope.reference
def _(
    x: Array,
    positions: Array,
    freq_factors: Array | None,
    *,
    mode: str,
    dims: int,
    magnitude: float,
    **spectrum: Any,
) -> Array:
    dims = dims or x.shape[-1]
    if dims == 0 or x.size == 0:
        return x.copy()
    speed = frequencies(dims=dims, **spectrum)  # [dims/2]
    if freq_factors is not None:
        speed = speed / freq_factors.astype(np.float64)
    angle = (positions.astype(np.float64)[:, None] * speed)[:, None, :]  # [T, 1, dims/2]
    cos, sin = magnitude * np.cos(angle), magnitude * np.sin(angle)
    first, second = _pairs(mode, dims)
    y = x.astype(np.float64)
    a, b = y[..., first], y[..., second]
    y[..., first], y[..., second] = a * cos - b * sin, a * sin + b * cos
    return rounded(y, dtypes.of(x))


def _pairs(mode: str, dims: int) -> tuple[slice, slice]:
    """Where the first and the second elements of all pairs lie."""
    if mode == "neox":
        return slice(0, dims // 2), slice(dims // 2, dims)
    return slice(0, dims, 2), slice(1, dims, 2)


@rope.cost
def _(node: Tensor) -> Cost:
    x, positions = present(node)[:2]
    return Cost(flops=3 * node.size, nbytes=x.nbytes + positions.nbytes + node.nbytes, batch=node.shape[-3])


@rope.cases
def _(draw: Draw) -> Tensor:
    x = draw.tensor(draw.shape(min_rank=3, last=2 * draw.integer(0, 20)))
    width = x.shape[-1]
    dims = 2 * draw.integer(0, width // 2)
    positions = draw.ids((x.shape[-3],), draw.choice([1, 100, 100_000]))
    factors = draw.tensor(((dims or width) // 2,), dtypes.f32, low=1.0, high=8.0) if draw.boolean() else None
    return rope(
        x,
        positions,
        factors,
        mode=draw.choice(["normal", "neox"]),
        dims=dims,
        base=draw.choice([1e4, 5e5]),
        freq_scale=draw.choice([1.0, 0.25, 0.025]),
        ext_factor=draw.choice([0.0, 1.0, 0.5]),
        original_context=4096,
        magnitude=draw.choice([1.0, 1.3689]),
    )
