"""Rotary position embedding, with linear scaling, YaRN, and factors for each frequency."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Rotation:
    """How elements first … first + dims of a row turn: every field as the keyword of `rope` that has its name."""

    mode: str = "normal"
    first: int = 0
    dims: int = 0
    base: float = 1e4
    freq_scale: float = 1.0
    ext_factor: float = 0.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    original_context: int = 0
    magnitude: float = 1.0

    def width(self, row: int) -> int:
        """How many elements turn in a row of so many."""
        return self.dims or row - self.first

    def speeds(self, row: int) -> Array:
        """The angle of each pair at position 1, [width/2] f64, in radians."""
        if self.width(row) == 0:
            return np.zeros(0)
        return frequencies(
            dims=self.width(row),
            base=self.base,
            freq_scale=self.freq_scale,
            ext_factor=self.ext_factor,
            beta_fast=self.beta_fast,
            beta_slow=self.beta_slow,
            original_context=self.original_context,
        )


@op(inplace=["x"])
def rope(
    x: Tensor,
    positions: Tensor,
    freq_factors: Tensor | None = None,
    *,
    mode: str = "normal",
    first: int = 0,
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
             mode "normal": pairs (2i, 2i+1), "neox": pairs (i, i + dims/2), both counted from element `first`;
             dims elements turn, 0: all from `first` on, the others are copied;  base of the frequencies;
             freq_scale on positions, 1/factor of the longer context;
             ext_factor of YaRN's ramp, 0: none;  beta_fast, beta_slow where the ramp ends, in turns over
             original_context tokens;  magnitude on cosine and sine (YaRN's factor is given here: none is hidden)
    Returns: [..., T, H, D] in x's dtype; angles are exact to f32 at any position
    Raises:  GraphError if shapes do not fit, dims is odd or leads beyond D, or a parameter is out of range
    Source:  Su et al. 2021, arXiv:2104.09864; Peng et al. 2023 (YaRN), arXiv:2309.00071
    """
    require_float("rope", x=x)
    require_dtype("rope", "positions", positions, (dtypes.i32,))
    require(x.rank >= 3, f"[rope] x must be [..., T, H, D], got {describe(x)}; add axes with reshape")
    require(
        positions.shape == x.shape[-3:-2],
        f"[rope] positions {describe(positions)} must be [T], with T = {x.shape[-3]} of x {describe(x)}",
    )
    spectrum = (base, freq_scale, ext_factor, beta_fast, beta_slow, original_context)
    require_rotation("rope", "x", x, freq_factors, Rotation(mode, first, dims, *spectrum, magnitude))
    return like(x)


def require_rotation(op: str, argument: str, x: Tensor, freq_factors: Tensor | None, rotation: Rotation) -> None:
    """Raise GraphError unless x's rows can turn so."""
    first, dims = rotation.first, rotation.width(x.shape[-1])
    require(first >= 0, f"[{op}] first must not be negative, got {first}; it is the first element that turns")
    require(
        0 <= dims <= x.shape[-1] - first and dims % 2 == 0,
        f"[{op}] dims {dims} must be even and at most the last axis of {argument} {describe(x)}, from element {first} "
        f"on; pass dims=",
    )
    if freq_factors is not None:
        require_dtype(op, "freq_factors", freq_factors, (dtypes.f32,))
        require(
            freq_factors.shape == (dims // 2,),
            f"[{op}] freq_factors {describe(freq_factors)} must be [{dims // 2}]: one for each pair of {dims}",
        )
    mode, base, scale = rotation.mode, rotation.base, rotation.freq_scale
    require(mode in ("normal", "neox"), f'[{op}] mode must be "normal" or "neox", got {mode!r}')
    require(base > 0 and scale > 0, f"[{op}] base and freq_scale must be positive, got {base} and {scale}")
    ramp, context = rotation.ext_factor, rotation.original_context
    fast, slow = rotation.beta_fast, rotation.beta_slow
    require(
        ramp == 0 or (context > 0 and base > 1 and fast >= slow > 0),
        f"[{op}] YaRN (ext_factor {ramp}) needs original_context > 0, base > 1 and beta_fast >= beta_slow > 0, "
        f"got {context}, {base}, {fast} and {slow}",
    )


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
    low = max(0, floor(pair_with_turns(beta_fast, dims, base, original_context)))
    high = min(dims - 1, ceil(pair_with_turns(beta_slow, dims, base, original_context)))
    ramp = ext_factor * (1.0 - np.clip((pair - low) / max(0.001, high - low), 0.0, 1.0))
    return theta * (freq_scale * (1.0 - ramp) + ramp)


def pair_with_turns(turns: float, dims: int, base: float, original_context: int) -> float:
    """The pair, as a fraction, that makes so many turns over the original context."""
    return dims * log(original_context / (turns * 2 * pi)) / (2 * log(base))


@rope.reference
def _(x: Array, positions: Array, freq_factors: Array | None, **params: Any) -> Array:
    return rounded(turned(x, positions, freq_factors, Rotation(**params)), dtypes.of(x))


def turned(x: Array, positions: Array, freq_factors: Array | None, rotation: Rotation) -> Array:
    """Rows of x [..., T, H, D] turned by positions [T], in f64."""
    y = x.astype(np.float64)
    speed = rotation.speeds(x.shape[-1])  # [dims/2]
    if freq_factors is not None:
        speed = speed / freq_factors.astype(np.float64)
    angle = (positions.astype(np.float64)[:, None] * speed)[:, None, :]  # [T, 1, dims/2]
    cos, sin = rotation.magnitude * np.cos(angle), rotation.magnitude * np.sin(angle)
    first, second = _pairs(rotation, x.shape[-1])
    a, b = y[..., first], y[..., second]
    y[..., first], y[..., second] = a * cos - b * sin, a * sin + b * cos
    return y


def _pairs(rotation: Rotation, row: int) -> tuple[slice, slice]:
    """Where the first and the second elements of all pairs lie in a row."""
    first, dims = rotation.first, rotation.width(row)
    if rotation.mode == "neox":
        return slice(first, first + dims // 2), slice(first + dims // 2, first + dims)
    return slice(first, first + dims, 2), slice(first + 1, first + dims, 2)


@rope.cost
def _(node: Tensor) -> Cost:
    x, positions = present(node)[:2]
    return Cost(flops=3 * node.size, nbytes=x.nbytes + positions.nbytes + node.nbytes, batch=node.shape[-3])


@rope.cases
def _(draw: Draw) -> Tensor:
    x = draw.tensor(draw.shape(min_rank=3, last=2 * draw.integer(0, 20)))
    positions = draw.ids((x.shape[-3],), draw.choice([1, 100, 100_000]))
    rotation = drawn_rotation(draw, x.shape[-1])
    pairs = rotation.width(x.shape[-1]) // 2
    factors = draw.tensor((pairs,), dtypes.f32, low=1.0, high=8.0) if draw.boolean() else None
    return rope(x, positions, factors, **vars(rotation))


def drawn_rotation(draw: Draw, row: int) -> Rotation:
    """A rotation of rows of so many elements."""
    first = draw.choice([0, draw.integer(0, row)])
    dims = 2 * draw.integer(0, (row - first) // 2)
    return Rotation(
        mode=draw.choice(["normal", "neox"]),
        first=first if dims or (row - first) % 2 == 0 else row,
        dims=dims,
        base=draw.choice([1e4, 5e5]),
        freq_scale=draw.choice([1.0, 0.25, 0.025]),
        ext_factor=draw.choice([0.0, 1.0, 0.5]),
        original_context=4096,
        magnitude=draw.choice([1.0, 1.3689]),
    )
