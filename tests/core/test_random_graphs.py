"""Random graphs over random backends, overrides and limits: always the result of the ops' references.

`make test` runs 300 graphs. All 2,000: GRAPHRT_RANDOM_GRAPHS=2000 pytest tests/core/test_random_graphs.py, about a
minute and a half on one core once the CPU kernels are compiled. Each run draws other graphs.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphrt import PlacementError, Scheduler, Settings, Tensor
from graphrt.backend import Backend, create
from graphrt.backends.blas import BlasBackend
from graphrt.backends.sim import SimBackend
from graphrt.dtypes import Array
from graphrt.explain import describe
from graphrt.pipeline import Pipeline
from graphrt.plan import Plan
from graphrt.testing import Draw
from tests.core.fusing import FusingBackend
from tests.core.oracle import RUNS, Oracle, difference, tolerance
from tests.core.random_graphs import RandomGraph, random_graph

GRAPHS = int(os.environ.get("GRAPHRT_RANDOM_GRAPHS", "300"))
ONE_THREAD = Settings.from_env({}, threads=1)
CPU = create("cpu", ONE_THREAD)


RUN = settings(
    max_examples=GRAPHS // 2,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)


@RUN
@given(st.data())
def test_any_graph_on_any_backends_gives_the_reference_result(data):
    """Every choice is hypothesis's own, so that a failure shrinks to its smallest graph; most graphs are simple."""
    check(Draw(lambda low, high: data.draw(st.integers(low, high))))


@RUN
@given(st.integers(0, 2**63))
def test_any_large_graph_on_any_backends_gives_the_reference_result(seed):
    """Choices drawn evenly make larger graphs, with more splits and copies; a failure is known by its seed."""
    check(Draw(random.Random(seed).randint))


def check(draw: Draw) -> None:
    """Draw one graph and one scheduler, run the plan twice, and compare with the oracle."""
    case = random_graph(draw)
    oracle = Oracle(case.graph, case.inputs)
    backends = draw_backends(draw)
    scheduler = draw_scheduler(draw, backends)
    assigned = draw_assigned(draw, case, backends)
    try:
        plan = scheduler.plan(case.graph, assigned=assigned)
    except PlacementError:
        assert limit_is_exceeded(scheduler, case, assigned)
        return
    way = draw.choice([run, run_poisoned, run_in_pipeline])
    for got in way(plan, case):
        expected = oracle.run()
        for output, want, have, coarse in zip(case.graph.outputs, expected, got, case.coarse, strict=True):
            error = difference(have, want)
            assert error <= tolerance(coarse), (
                f"{output!r}: error {error:.2e}, {way.__name__}\n{have}\n{want}\n{describe(plan.schedule)}"
            )


def run(plan: Plan, case: RandomGraph) -> Iterator[list[Array]]:
    """The outputs of two runs, one after the other."""
    for _ in range(RUNS):
        yield plan.run(case.inputs)


def run_poisoned(plan: Plan, case: RandomGraph) -> Iterator[list[Array]]:
    """Of two runs node by node, where what nothing should read any more is overwritten."""
    for name, array in case.inputs.items():
        plan.set_input(name, array)
    for _ in range(RUNS):
        for item, step in plan.steps_by_node():
            step()
            if isinstance(item, Tensor):
                plan.poison_freed(item)
        yield [plan.output(i).copy() for i in range(len(case.graph.outputs))]


def run_in_pipeline(plan: Plan, case: RandomGraph) -> Iterator[list[Array]]:
    """Of two runs under way at once; inputs are overwritten as soon as they were submitted."""
    pipeline = Pipeline(depth=2)
    for _ in range(RUNS):
        pipeline.submit(plan, case.inputs)
        for name in case.inputs:
            plan.input(name).view(np.uint8)[...] = 0xFF
    while pipeline:
        yield pipeline.result()


def draw_backends(draw: Draw) -> list[Backend]:
    """The host's backends, one that fuses, and up to three devices with gaps and limits, in any order."""
    backends: list[Backend] = [CPU] if draw.integer(0, 3) else []
    if draw.boolean():
        backends.insert(0, BlasBackend(ONE_THREAD, min_batch=draw.choice([0, 2, 32])))
    gaps = ["mul_mat", "mul_mat_id", "add", "set_rows", "cpy", "attention", "rms_norm", "concat", "silu", "clamp"]
    for number in range(draw.integer(0, 3)):
        missing = {draw.choice(gaps) for _ in range(draw.integer(0, 4))}
        limit = draw.choice([None, None, 2_000, 40_000, 400_000])
        device = SimBackend(f"sim{number}", missing=missing, limit=limit, asynchronous=draw.boolean())
        backends.insert(draw.integer(0, len(backends)), device)
    if draw.boolean():
        backends.insert(draw.integer(0, len(backends)), FusingBackend(draw.integer(0, 2**31)))
    return backends or [create("reference", ONE_THREAD)]


def draw_scheduler(draw: Draw, backends: list[Backend]) -> Scheduler:
    """A scheduler with random rules and a random threshold."""
    names = [backend.name for backend in backends]
    tensors = [r"^w", r"[02468]\.weight$", r"\.[1-9]\.", r"^cache", r"^memory", r"[13579]$", r"[13579]\.weight@prompt"]
    nodes = [r"^mul_mat", r"[02468]$", r"^silu$", r"^set_rows", r"_1\d?$", r"^(add|clamp|cpy)$", r"^attention@decode"]
    rules = [f"{draw.choice(tensors)}={draw.choice(names)}" for _ in range(draw.integer(0, 4))]
    node_rules = [f"{draw.choice(nodes)}={draw.choice(names)}" for _ in range(draw.integer(0, 4))]
    return Scheduler(
        backends,
        overrides=rules,
        node_overrides=node_rules,
        op_offload_min_batch=draw.choice([1, 2, 16, 32]),
        threads=1,
        fuse=draw.choice([1, 1, 0]),
    )


def draw_assigned(draw: Draw, case: RandomGraph, backends: list[Backend]) -> dict[Tensor, str]:
    """Some nodes and weights that the user places."""
    tensors = [*case.graph.nodes, *(leaf for leaf in case.graph.leafs if leaf.role in ("weight", "state"))]
    return {draw.choice(tensors): draw.choice(backends).name for _ in range(draw.integer(0, 5))}


def limit_is_exceeded(scheduler: Scheduler, case: RandomGraph, assigned: dict[Tensor, str]) -> bool:
    """Whether the same schedule without limits needs more than some device's limit."""
    limits = {backend: backend.limit for backend in scheduler.backends}
    for backend in limits:
        backend.limit = None
    schedule = scheduler.schedule(case.graph, assigned=assigned)
    needed = {
        backend: schedule.memory.sizes.get(backend.memory, 0)
        + sum(leaf.nbytes for leaf in schedule.resident(backend.memory))
        for backend in limits
    }
    return any(limit is not None and needed[backend] > limit for backend, limit in limits.items())
