"""The numerics watch, GRAPH_CHECK_NUMERICS: which node was the first to yield inf or NaN, or a wrong result.

Level 1 runs a plan node by node and stops at the first result that holds NaN or an infinity; level 2 also compares each
result with the reference's for the same sources.

NaN is never right. An infinity is, where somebody put it: a `fill` with one, a constant or an input that holds some,
and whatever is computed from these (a mask of -inf that leaves experts or tokens out). All others stop the run.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from math import isinf
from typing import TYPE_CHECKING

import numpy as np

from graphrt import dtypes
from graphrt.dtypes import Array
from graphrt.errors import GraphError, NumericsError
from graphrt.splits import value_of
from graphrt.tensor import Tensor

if TYPE_CHECKING:
    from graphrt.plan import Plan

F16_MAX = 65504.0
F32_MAX = float(np.finfo(np.float32).max)
LARGEST_EXPONENT = 88.7  # exp of more overflows f32
_PIECE = 1 << 24  # elements of a weight that are dequantized at a time


@dataclass(frozen=True)
class Values:
    """What a tensor holds: its least and greatest finite value, and how many are not finite."""

    low: float
    high: float
    nans: int
    infinities: int

    @classmethod
    def of(cls, array: Array) -> Values:
        """Summarise an array of any dtype."""
        found = [cls._of_piece(dtypes.to_f32(piece)) for piece in _pieces(array)]
        return cls(
            low=min((one.low for one in found), default=np.inf),
            high=max((one.high for one in found), default=-np.inf),
            nans=sum(one.nans for one in found),
            infinities=sum(one.infinities for one in found),
        )

    @classmethod
    def _of_piece(cls, values: Array) -> Values:
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (np.inf, -np.inf)
        return cls(low, high, int(np.isnan(values).sum()), int(np.isinf(values).sum()))

    @property
    def largest(self) -> float:
        """The greatest finite magnitude; 0 where there is none."""
        return max(-self.low, self.high, 0.0)

    @property
    def is_finite(self) -> bool:
        return not self.nans and not self.infinities

    def __str__(self) -> str:
        span = f"{self.low:.4g} to {self.high:.4g}" if self.low <= self.high else "no finite value"
        odd = [f"{count:,} {word}" for count, word in ((self.nans, "NaN"), (self.infinities, "infinite")) if count]
        return ", ".join([span, *odd])


def _pieces(array: Array) -> list[Array]:
    """An array along its first axis, in pieces small enough to be dequantized."""
    elements = array.size * dtypes.of(array).block
    count = min(-(-elements // _PIECE), len(array)) if array.ndim > 1 else 1
    return [piece for piece in np.array_split(array, count) if piece.size] if count > 1 else [array]


def execute_watched(plan: Plan, *, compare: bool) -> None:
    """Run a plan node by node, and check each result.

    Raises: NumericsError at the first result that is not finite without cause, or, with `compare`, that is farther from
        the reference's than its op allows.
    """
    watch = _Watch(plan)
    with closing(plan.steps_by_node()) as steps:
        for item, step in steps:
            if not isinstance(item, Tensor):
                step()
                continue
            before = plan.sources(item) if compare else watch.overwritten(item)
            step()
            got = plan.value(item)
            watch.check_finite(item, got, before)
            if compare:
                watch.compare(item, got, before)


Sources = list[Array | None]


class _Watch:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.masks: set[Tensor] = set()

    def overwritten(self, node: Tensor) -> Sources:
        """The values of those sources whose memory the node takes over; None for the others, still there afterwards."""
        donor = self.plan.schedule.memory_by_node.inplace.get(node)
        return [
            self.plan.source(node, src) if src is not None and donor is not None and src.root is donor.root else None
            for src in node.srcs
        ]

    def check_finite(self, node: Tensor, got: Array, before: Sources) -> None:
        if dtypes.of(got).is_integer:
            return
        values = Values.of(got)
        if values.is_finite:
            return
        if not values.nans and self._is_mask(node):
            self.masks.add(node)
            return
        odd = " and ".join(
            f"{count:,} {word}" for count, word in ((values.nans, "NaN"), (values.infinities, "infinite")) if count
        )
        said = f"is the first that is not finite: {odd} of {node.size:,} values"
        raise NumericsError(self._report(node, said, self._hint(node, values, self._complete(node, before)), before))

    def compare(self, node: Tensor, got: Array, before: Sources) -> None:
        assert node.op is not None
        if self._backend(node) == "reference":
            return
        error, allowed = normalised_error(got, node.op.evaluate(node, before)), node.op.tolerance_of(node)
        if error > allowed:
            said = f"differs from the reference: normalised mean squared error {error:.2e}, {allowed:.0e} is allowed"
            hint = f'place it elsewhere, as with --override-node "^{node.name}$=reference", and report its kernel'
            raise NumericsError(self._report(node, said, hint, before))

    def _is_mask(self, node: Tensor) -> bool:
        """Whether infinities are in the node because somebody put them there, or into what it is computed from."""
        assert node.op is not None
        if any(isinstance(value, float) and isinf(value) for value in node.params.values()) and node.op.name == "fill":
            return True
        for src in node.srcs:
            if src is None:
                continue
            value = value_of(src)
            if value in self.masks:
                return True
            if value.role in ("constant", "input") and Values.of(self.plan.source(node, src)).infinities:
                return True
        return False

    def _backend(self, node: Tensor) -> str:
        return self.plan.placements[node].backend.name

    def _complete(self, node: Tensor, before: Sources) -> Sources:
        """All sources' values, kept from before the node ran, or still in memory; None for the target of a write."""
        is_write = node.op is not None and node.op.kind == "write"
        values = [
            self.plan.source(node, src) if kept is None and src is not None else kept
            for src, kept in zip(node.srcs, before, strict=True)
        ]
        return [None, *values[1:]] if is_write else values

    def _report(self, node: Tensor, said: str, hint: str, before: Sources) -> str:
        op = node.op.name if node.op is not None else ""
        lines = [f"[numerics] {_words(node)} = {op} on {self._backend(node)} {said}"]
        for src, values in zip(node.srcs, self._complete(node, before), strict=True):
            if src is not None and values is not None:
                lines.append(f"  source {_words(src)}: {Values.of(values)}")
        return "\n".join([*lines, f"  hint: {hint}"])

    def _hint(self, node: Tensor, values: Values, sources: Sources) -> str:
        ranges = [None if array is None else Values.of(array) for array in sources]
        for src, found in zip(node.srcs, ranges, strict=True):
            if src is not None and found is not None and found.nans:
                return f"NaN is in {value_of(src).name} already, {_ORIGIN.get(value_of(src).role, 'a result')}"
            if src is not None and found is not None and found.infinities and value_of(src).role in ("weight", "state"):
                return f"infinities are in {value_of(src).name} already, {_ORIGIN[value_of(src).role]}"
        if self._reference_is_finite(node, sources):
            return f"the reference's result of the same sources is finite: the fault is in the kernel of {node.op}"
        return _overflow_hint(node, ranges) or _op_hint(node, ranges) or (
            "the result is beyond the dtype's range: scale the sources down" if not values.nans else
            "compare each node with the reference: GRAPH_CHECK_NUMERICS=2"
        )  # fmt: skip

    def _reference_is_finite(self, node: Tensor, sources: Sources) -> bool:
        assert node.op is not None
        if self._backend(node) == "reference" or node.op.kind == "write":
            return False
        try:
            return Values.of(node.op.evaluate(node, sources)).is_finite
        except GraphError:  # the op has no reference
            return False


_ORIGIN = {
    "weight": "a weight: the file is damaged, or its conversion overflowed",
    "input": "an input: look at what was written into it",
    "constant": "a constant of the graph",
    "state": "a state that an earlier run wrote: start from a cleared one",
}


def _overflow_hint(node: Tensor, ranges: list[Values | None]) -> str | None:
    largest = max((found.largest for found in ranges if found is not None), default=0.0)
    if node.dtype.name == "f16":
        cache = " (of a model's cache: cache_type=bf16)" if node.root.role == "state" else ""
        remedy = f"use bf16 or f32 for {node.root.name}{cache}"
        return f"f16 holds at most {F16_MAX:.0f}, the sources reach {largest:.4g}: {remedy}"
    if node.dtype.is_quantized and largest > F16_MAX:
        return f"the scales of {node.dtype} blocks are f16, the sources reach {largest:.4g}: use bf16 or f32"
    if largest > F32_MAX**0.5:
        return f"the sources reach {largest:.4g}, and products of such values overflow {node.dtype}: scale them down"
    return None


def _op_hint(node: Tensor, ranges: list[Values | None]) -> str | None:
    """What commonly goes wrong with an op, where its sources' ranges show it."""
    op = node.op.name if node.op is not None else ""
    first = ranges[0] if ranges else None
    last = ranges[-1] if ranges else None
    if op == "sqrt" and first is not None and first.low < 0:
        return f"square root of {first.low:.4g}: clamp the source to 0 or more"
    if op == "div" and last is not None and last.low <= 0 <= last.high:
        return "division by 0: clamp the divisor"
    if op == "exp" and first is not None and first.high > LARGEST_EXPONENT:
        return f"exp of {first.high:.4g} overflows; subtract the row's largest value first, as soft_max does"
    if op == "rms_norm" and not node.params["eps"]:
        return "the norm of a row of zeros: eps must be above 0"
    return None


def _words(tensor: Tensor) -> str:
    return f"{tensor.name or f'view of {tensor.root.name}'} {tensor.dtype}{list(tensor.shape)}"


def normalised_error(got: Array, expected: Array) -> float:
    """Mean squared difference over the mean square of the expected; 0 where equal, infinite where not finite alike.

    Raises: GraphError if shapes or dtypes differ.
    """
    if got.shape != expected.shape or got.dtype != expected.dtype:
        raise GraphError(f"[check] got {got.dtype} {list(got.shape)}, expected {expected.dtype} {list(expected.shape)}")
    if dtypes.of(got).is_integer:
        return 0.0 if np.array_equal(got, expected) else float("inf")
    a, b = dtypes.to_f32(got).astype(np.float64), dtypes.to_f32(expected).astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(np.isfinite(a), finite) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return float("inf")
    difference = float(np.sum((a[finite] - b[finite]) ** 2))
    return difference / max(float(np.sum(b[finite] ** 2)), 1e-30) if difference else 0.0
