"""Check an op's kernels against its NumPy reference, on every backend present: check(op).

An op's cases function draws its arguments from a `Draw`; hypothesis chooses the draws in mode "test", a seeded
generator with longer axes in modes "perf" and "support".
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np

from graphrt import dtypes
from graphrt.backend import Backend, available
from graphrt.dtypes import Array, DType
from graphrt.errors import PlacementError
from graphrt.graph import Graph
from graphrt.numerics import normalised_error
from graphrt.op import Op
from graphrt.scheduler import Scheduler
from graphrt.tensor import Role, Shape, Tensor

T = TypeVar("T")
Layout = Literal["any", "rows", "dense"]


class Draw:
    """A source of arguments for test cases; every choice comes from `whole`, a function (low, high) -> whole number."""

    def __init__(self, whole: Callable[[int, int], int], *, longest: int = 9) -> None:
        self.integer = whole
        self._longest = longest
        self._made = 0

    def choice(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.integer(0, len(options) - 1)]

    def boolean(self) -> bool:
        """True or False."""
        return self.integer(0, 1) == 1

    def number(self, low: float, high: float) -> float:
        """A float between low and high, one of 1001 steps."""
        return low + (high - low) * self.integer(0, 1000) / 1000

    def side(self, min: int = 0) -> int:
        """The length of one axis: short ones often, sometimes past a vector's width, or past a few vectors."""
        return self.integer(min, self._longest * self.choice([1, 1, 5, 15]))

    def shape(self, min_rank: int = 1, max_rank: int = 4, last: int | None = None) -> Shape:
        """A shape with sides of 0, 1, odd and even; `last` fixes the last axis."""
        rank = self.integer(min_rank, max_rank)
        sides = [self.integer(0 if not self.integer(0, 5) else 1, 4) for _ in range(rank - 1)]
        return (*sides, self.side() if last is None else last)

    def rows_of(self, dtype: DType, shape: Shape) -> Shape:
        """The shape with its last axis made whole blocks of the dtype."""
        return (*shape[:-1], -(-shape[-1] // dtype.block) * dtype.block)

    def tensor(
        self,
        shape: Shape,
        dtypes: Sequence[DType] | DType = dtypes.FLOATS,
        *,
        low: float = -1.0,
        high: float = 1.0,
        layout: Layout = "any",
        role: Role = "weight",
    ) -> Tensor:
        """A leaf with drawn values: dense, or with permuted axes, gaps, steps or an offset where the layout allows."""
        dtype = dtypes if isinstance(dtypes, DType) else self.choice(dtypes)
        shape = self.rows_of(dtype, shape) if shape else shape
        values = _values(self._generator(), shape, dtype, low, high)
        array = values if dtype.rows > 1 else self._laid_out(values, layout)
        self._made += 1
        return Tensor(f"leaf_{self._made}", dtype, shape, strides=array.strides, data=array, role=role)

    def ids(self, shape: Shape, upper: int, dtype: DType = dtypes.i32, *, unique: bool = False) -> Tensor:
        """Whole numbers in [0, upper); `unique` along the last axis."""
        generator = self._generator()
        if unique:
            rows = [generator.permutation(upper)[: shape[-1]] for _ in range(int(np.prod(shape[:-1])))]
            values = np.array(rows, dtype.numpy).reshape(shape)
        else:
            values = generator.integers(0, max(1, upper), shape).astype(dtype.numpy)
        self._made += 1
        return Tensor(f"leaf_{self._made}", dtype, shape, data=values, role="constant")

    def _generator(self) -> np.random.Generator:
        return np.random.default_rng(self.integer(0, 2**31 - 1))

    def _laid_out(self, dense: Array, layout: Layout) -> Array:
        """The same values with drawn strides."""
        kind = self.integer(0, 3) if layout != "dense" and dense.ndim else 0
        if kind == 0:
            return dense
        free = dense.ndim if layout == "any" else dense.ndim - 1
        if kind == 1:
            order = [*np.random.default_rng(self.integer(0, 1000)).permutation(free), *range(free, dense.ndim)]
            return np.ascontiguousarray(dense.transpose(order)).transpose(np.argsort(order))
        steps = [self.integer(1, 2) if axis < free and kind == 3 else 1 for axis in range(dense.ndim)]
        before = [self.integer(0, 2) for _ in range(dense.ndim)]
        wide = [b + n * s + 1 for b, n, s in zip(before, dense.shape, steps, strict=True)]
        storage = np.zeros(wide, dense.dtype)
        inside = storage[tuple(slice(b, b + n * s, s) for b, n, s in zip(before, dense.shape, steps, strict=True))]
        inside[...] = dense
        return inside


def _values(generator: np.random.Generator, shape: Shape, dtype: DType, low: float, high: float) -> Array:
    if dtype.is_integer:
        return generator.integers(int(np.floor(low)), int(np.ceil(high)) + 1, shape).astype(dtype.numpy)
    if dtype.is_quantized:
        return random_blocks(generator, shape, dtype, scale=max(abs(low), abs(high)))
    return (low + (high - low) * generator.random(shape, np.float32)).astype(dtype.numpy)


# Bytes of each quantized block that hold f16 scales; MXFP4's one byte is an exponent. K-quants have sub-scales besides.
_HALF_SCALES = {
    "q4_0": (0,), "q4_1": (0, 2), "q5_0": (0,), "q5_1": (0, 2), "q8_0": (0,), "q2_k": (80, 82), "q3_k": (108,),
    "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,), "iq4_nl": (0,), "iq4_xs": (0,),
}  # fmt: skip


def random_blocks(generator: np.random.Generator, shape: Shape, dtype: DType, scale: float = 1.0) -> Array:
    """Quantized blocks of random bits whose scales are sane, so that values stay within a few times `scale`."""
    if dtype.rows > 1:
        return dtypes.interleave(random_blocks(generator, shape, dtype.plain, scale))
    count = int(np.prod(shape)) // dtype.block
    raw = generator.integers(0, 256, (count, dtype.nbytes), np.uint8)
    typical = {
        "q8_0": 127,
        "q2_k": 45,
        "q3_k": 128,
        "q4_k": 945,
        "q5_k": 1953,
        "q6_k": 4096,
        "iq4_nl": 127,
        "iq4_xs": 4064,
    }
    for at in _HALF_SCALES.get(dtype.name, ()):
        sizes = (0.5 + generator.random(count)) * scale / typical.get(dtype.name, 16)
        raw[:, at : at + 2] = sizes.astype(np.float16).reshape(-1, 1).view(np.uint8)
    if dtype.name == "mxfp4":
        raw[:, 0] = generator.integers(120, 126, count, np.uint8)
    blocks = (*shape[:-1], shape[-1] // dtype.block)
    return raw.reshape(-1).view(dtype.numpy).reshape(blocks)


@dataclass
class Report:
    """What a check saw, by backend: cases that ran, cases it refused with the reasons, the worst error, times.

    `absent` says why a backend that is installed cannot start here.
    """

    op: str
    ran: dict[str, int] = field(default_factory=dict)
    refused: dict[str, dict[str, int]] = field(default_factory=dict)
    worst: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.op}:"]
        for backend, count in self.ran.items():
            lines.append(f"  {backend}: {count} cases, worst error {self.worst[backend]:.1e}")
            if self.seconds[backend]:
                lines[-1] += f", median {np.median(self.seconds[backend]) * 1e6:.1f} µs"
            lines += [f"    not ({times} times): {reason}" for reason, times in self.refused[backend].items()]
        lines += [f"  {backend}: absent: {reason}" for backend, reason in self.absent.items()]
        return "\n".join(lines)


def check(
    op: Op,
    *,
    backends: Iterable[str | Backend] | None = None,
    mode: Literal["test", "perf", "support"] = "test",
    examples: int = 50,
    **settings: Any,
) -> Report:
    """Run an op's cases on backends and compare each result with the reference.

    Args:
        backends: names or Backend objects; all that can start here where None.
        mode: "test" draws with hypothesis and shrinks a failure to its smallest case; "perf" times longer cases;
            "support" asks each backend what it takes and runs nothing.
        examples: cases to draw.
        settings: of the scheduler, as threads=2.
    Returns: a Report, which prints as a table.
    Raises: AssertionError with the case and the error, where a kernel is wrong.
    """
    report = Report(op.name)
    reference = Scheduler(["reference"])
    schedulers = {}
    for backend in backends or available():
        # A device needs a host beside it; every case is told to run on the device all the same.
        try:
            scheduler = Scheduler([backend], **settings)
        except PlacementError as error:
            if backends is not None:
                raise
            report.absent[str(backend)] = str(error)
            continue
        name = scheduler.backends[0].name
        schedulers[name] = scheduler
        report.ran[name], report.worst[name], report.refused[name], report.seconds[name] = 0, 0.0, {}, []

    def one(draw: Draw) -> None:
        case = op.draw_case(draw)
        if mode != "support":
            expected = _run(reference, case)[0]
            reference.clear()
        for name, scheduler in schedulers.items():
            answer = scheduler.backends[0].supports(case) if case.op and case.op.kind != "view" else True
            if not answer:
                reason = str(getattr(answer, "reason", ""))
                report.refused[name][reason] = report.refused[name].get(reason, 0) + 1
            elif mode == "support":
                report.ran[name] += 1
            else:
                _compare(report, name, scheduler, case, expected, timed=mode == "perf")

    if mode == "test":
        _with_hypothesis(one, examples)
    else:
        generator = random.Random(0)
        for _ in range(examples):
            one(Draw(generator.randint, longest=1000 if mode == "perf" else 9))
    return report


def _with_hypothesis(one: Callable[[Draw], None], examples: int) -> None:
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.data())
    def cases(data: Any) -> None:
        one(Draw(lambda low, high: int(data.draw(st.integers(low, high)))))

    cases()


def _compare(report: Report, name: str, scheduler: Scheduler, case: Tensor, expected: Array, *, timed: bool) -> None:
    got, seconds = _run(scheduler, case, repeats=5 if timed else 0)
    scheduler.clear()
    error = normalised_error(got, expected)
    report.ran[name] += 1
    report.worst[name] = max(report.worst[name], error)
    report.seconds[name] += seconds
    tolerance = case.op.tolerance_of(case) if case.op else 0.0
    if not error <= tolerance:
        sources = "\n".join(f"  {src!r} strides {list(src.strides)}" for src in case.srcs if src is not None)
        raise AssertionError(
            f"[{report.op}] on {name}: normalised mean squared error {error:.3e} > {tolerance:.0e}\n"
            f"  {case!r} {dict(case.params)}\n{sources}\n"
            f"  got      {np.array2string(dtypes.to_f32(got), threshold=20)}\n"
            f"  expected {np.array2string(dtypes.to_f32(expected), threshold=20)}"
        )


def _run(scheduler: Scheduler, case: Tensor, repeats: int = 0) -> tuple[Array, list[float]]:
    """The case's result from a fresh copy of its states, and the times of further runs."""
    graph = Graph(case)
    states = {leaf: leaf.data.copy() for leaf in graph.leafs if leaf.role == "state" and leaf.data is not None}
    # What a case writes into goes with it; so do weights, whose buffers are as long as they are: reads past them show.
    weights = [leaf for leaf in graph.leafs if leaf.role == "weight"]
    plan = scheduler.plan(graph, assigned=dict.fromkeys((case, case.root, *weights), scheduler.backends[0].name))
    plan.execute()
    result = plan.output().copy()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        plan.execute()
        seconds.append(time.perf_counter() - start)
    for leaf, saved in states.items():
        if leaf.data is not None:
            leaf.data[...] = saved
    return result, seconds
