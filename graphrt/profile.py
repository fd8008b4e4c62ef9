"""Where the time of a plan goes: per node, and summed by op, by tensor name and by module; as a table or a trace.

profile = plan.profile(repeats=5)
print(profile)                             tables
profile.by("op"), profile.by("module")     the same as data
profile.trace()                            events for Perfetto (ui.perfetto.dev) or chrome://tracing
"""

from __future__ import annotations

import io
import re
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from graphrt.backend import Backend
from graphrt.copies import Copy
from graphrt.splits import value_of
from graphrt.tensor import Tensor

if TYPE_CHECKING:
    from rich.console import Group as RichGroup
    from rich.table import Table

    from graphrt.plan import Plan

Key = Literal["op", "pattern", "module", "backend"]
SHOWN = 24  # patterns in a table, the slowest first
SHOWN_IN_TRACE = ("op", "pattern", "module", "backend", "flops", "nbytes")  # when a box is clicked

# What a name tells of its module: the first that matches a node's name, or its weight's.
MODULES = (
    ("router", r"ffn_gate_inp|exp_probs_b|ffn_moe_(logits|probs|topk|weights)"),
    ("shared expert", r"_shexp"),
    ("experts", r"_exps\.|ffn_moe_"),
    ("cache", r"^cache_"),
    ("output", r"^output\.|result_output"),
    ("norm", r"_norm(\W|$)"),
    ("attention", r"\battn_|^[QKV]cur|^kqv"),
    ("residual", r"^(ffn_inp|l_out)-"),
    ("dense FFN", r"\bffn_(gate|up|down|out)"),
    ("embedding", r"token_embd|inp_embd"),
)
# An unnamed node belongs to the module of its first source, unless that only hands its result on.
_PASSING = ("norm", "residual", "embedding", "other")


@dataclass(frozen=True)
class Step:
    """One node or copy.

    Args:
        op: the op's name; "copy" for a copy between memories.
        pattern: the name of the weight that it multiplies with, else its own, with "*" for the layer's number.
        module: attention, experts, router …; see MODULES.
        backend: where it runs; of a copy, "host -> sim".
        start, last: seconds from the beginning of the last repetition, and what it took there.
        seconds: median of the repetitions.
    """

    name: str
    op: str
    pattern: str
    module: str
    backend: str
    flops: int
    nbytes: int
    start: float
    last: float
    seconds: float


@dataclass(frozen=True)
class Sum:
    """Steps of one kind together; `share` of the time of all steps."""

    name: str
    count: int
    seconds: float
    share: float
    flops: int
    nbytes: int

    @property
    def flops_rate(self) -> float:
        """Floating-point operations a second."""
        return self.flops / self.seconds if self.seconds else 0.0

    @property
    def bytes_rate(self) -> float:
        """Bytes read and written a second, as the op's cost counts them."""
        return self.nbytes / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Profile:
    """The times of a plan.

    Args:
        steps: every copy and node in the order of execution, each run and timed alone.
        execute_seconds: median time of a plain run; whole splits cost less than their nodes one by one.
        repeats: runs of which the medians are.
    """

    steps: tuple[Step, ...]
    execute_seconds: float
    repeats: int

    @property
    def seconds(self) -> float:
        """All steps together, which includes what starting each alone costs."""
        return sum(step.seconds for step in self.steps)

    def by(self, key: Key) -> list[Sum]:
        """The steps summed by op, name pattern, module or backend, the slowest first."""
        groups: dict[str, list[Step]] = {}
        for step in self.steps:
            groups.setdefault(getattr(step, key), []).append(step)
        return sorted((self._sum(name, steps) for name, steps in groups.items()), key=lambda one: -one.seconds)

    def _sum(self, name: str, steps: Sequence[Step]) -> Sum:
        seconds = sum(step.seconds for step in steps)
        return Sum(
            name=name,
            count=len(steps),
            seconds=seconds,
            share=seconds / self.seconds if self.seconds else 0.0,
            flops=sum(step.flops for step in steps),
            nbytes=sum(step.nbytes for step in steps),
        )

    def trace(self, name: str = "plan", process: int = 0) -> list[dict[str, Any]]:
        """The last repetition as Chrome's trace events: a row a backend, a box a node; json.dump writes the file.

        Args:
            name, process: of the group of rows; several profiles in one file need numbers of their own.
        """
        rows = {name: number for number, name in enumerate(dict.fromkeys(step.backend for step in self.steps))}
        titles: list[dict[str, Any]] = [
            {"name": "process_name", "ph": "M", "pid": process, "args": {"name": name}},
            *(
                {"name": "thread_name", "ph": "M", "pid": process, "tid": number, "args": {"name": backend}}
                for backend, number in rows.items()
            ),
        ]
        boxes = [
            {
                "name": step.name,
                "cat": step.module,
                "ph": "X",
                "pid": process,
                "tid": rows[step.backend],
                "ts": step.start * 1e6,
                "dur": step.last * 1e6,  # not the median: boxes of one row must not reach into each other
                "args": {key: value for key, value in asdict(step).items() if key in SHOWN_IN_TRACE},
            }
            for step in self.steps
        ]
        return [*titles, *boxes]

    def __rich__(self) -> RichGroup:
        from rich.console import Group

        tables = [self._table(key) for key in ("module", "op", "pattern")]
        return Group(
            f"one run: {_milliseconds(self.execute_seconds)}; its {len(self.steps)} nodes and copies one by one: "
            f"{_milliseconds(self.seconds)}, starting each included (medians of {self.repeats})",
            *tables,
        )

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(file=io.StringIO(), width=120, highlight=False, markup=False)
        console.print(self)
        text: str = console.file.getvalue()  # type: ignore[attr-defined]
        return text

    def _table(self, key: Key) -> Table:
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD)
        table.add_column(key, overflow="fold")
        for title in ("count", "time", "share", "GFLOP/s", "GB/s"):
            table.add_column(title, justify="right")
        sums = self.by(key)
        for one in sums[:SHOWN]:
            rates = (f"{one.flops_rate / 1e9:.2f}", f"{one.bytes_rate / 1e9:.2f}")
            table.add_row(one.name, str(one.count), _milliseconds(one.seconds), f"{one.share:.1%}", *rates)
        if len(sums) > SHOWN:
            rest = sums[SHOWN:]
            seconds, share = sum(one.seconds for one in rest), sum(one.share for one in rest)
            count = str(sum(one.count for one in rest))
            table.add_row(f"{len(rest)} others", count, _milliseconds(seconds), f"{share:.1%}", "", "")
        return table


def measure(plan: Plan, repeats: int = 5) -> Profile:
    """Time a plan over what its inputs hold now: whole, and node by node; one run of each before the clock starts."""
    backends = plan.schedule.backends
    executed = [_timed(plan.execute, backends) for _ in range(repeats + 1)][1:]
    runs = [_run_steps(plan, backends) for _ in range(repeats + 1)][1:]
    begin = runs[-1][0][1] if runs[-1] else 0.0
    describe = _Describer(plan)
    steps = []
    for same in zip(*runs, strict=True):
        item, start, last = same[-1]
        steps.append(describe(item, start - begin, last, statistics.median(seconds for *_, seconds in same)))
    return Profile(tuple(steps), statistics.median(executed), repeats)


def execute_timed(plan: Plan) -> str:
    """Run a plan once, node by node, and say what each took: what GRAPH_SCHED_DEBUG=4 prints after a run."""
    steps = _run_steps(plan, plan.schedule.backends)
    describe = _Describer(plan)
    lines = [f"run: {_milliseconds(sum(seconds for *_, seconds in steps))} in {len(steps)} nodes and copies one by one"]
    for item, start, seconds in steps:
        step = describe(item, start, seconds, seconds)
        made = "" if isinstance(item, Copy) else f" = {step.op}"
        lines.append(f"  {seconds * 1e3:10.3f} ms  {step.name}{made} @{step.backend}")
    return "\n".join(lines)


def _run_steps(plan: Plan, backends: Sequence[Backend]) -> list[tuple[Tensor | Copy, float, float]]:
    """Every step with its start and its seconds."""
    times = []
    with closing(plan.steps_by_node()) as taken:
        for item, step in taken:
            start = time.perf_counter()
            times.append((item, start, _timed(step, backends)))
    return times


def _timed(run: Callable[[], None], backends: Iterable[Backend]) -> float:
    start = time.perf_counter()
    run()
    for backend in backends:
        backend.synchronize()
    return time.perf_counter() - start


class _Describer:
    """Says what each step is; an unnamed node takes after its sources, so steps are described in order."""

    def __init__(self, plan: Plan) -> None:
        self.placements = plan.schedule.placements
        self.modules: dict[Tensor, str] = {}

    def __call__(self, item: Tensor | Copy, start: float, last: float, seconds: float) -> Step:
        if isinstance(item, Copy):
            way = f"{self.placements.memory_of(item.value)} -> {item.memory}"
            name, pattern = f"copy {item.value.name}", f"copy {pattern_of(item.value.name)}"
            return Step(name, "copy", pattern, "copies", way, 0, item.nbytes, start, last, seconds)
        assert item.op is not None
        cost, weight = item.op.cost_of(item), _weight_of(item)
        self.modules[item] = self._module(item, weight)
        return Step(
            name=item.name,
            op=item.op.name,
            pattern=pattern_of(item.name if weight is None else weight.name),
            module=self.modules[item],
            backend=self.placements.nodes[item].backend.name,
            flops=cost.flops,
            nbytes=cost.nbytes,
            start=start,
            last=last,
            seconds=seconds,
        )

    def _module(self, node: Tensor, weight: Tensor | None) -> str:
        written = node.root.name if node.is_view else ""
        for name in (written, node.name, weight.name if weight is not None else ""):
            for module, pattern in MODULES:
                if name and re.search(pattern, name):
                    return module
        if node.op is not None and "norm" in node.op.name:
            return "norm"
        inherited = (self.modules.get(value_of(src)) for src in node.srcs if src is not None)
        return next((module for module in inherited if module not in (None, *_PASSING)), "other") or "other"


def _weight_of(node: Tensor) -> Tensor | None:
    """The weight matrix that a node reads, if any."""
    roots = (src.root for src in node.srcs if src is not None)
    return next((root for root in roots if root.role == "weight" and root.rank > 1), None)


def pattern_of(name: str) -> str:
    """A name with its numbers replaced, so that all layers share it: blk.*.ffn_up.weight, attn_norm-*."""
    return re.sub(r"(?<![A-Za-z\d])\d+|(?<=_)\d+$", "*", name)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms"
