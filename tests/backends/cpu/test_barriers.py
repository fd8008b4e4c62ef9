"""Where threads wait for each other: always where data demands it, and seldom elsewhere."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import graphrt
from graphrt import Graph, Scheduler, ops
from graphrt.backends.cpu.barriers import ALL, SMALL, TOGETHER, Touched, Turn, turns_of
from graphrt.models.synth import synthesise
from graphrt.testing import Draw
from tests.core.oracle import Oracle, difference, tolerance
from tests.core.random_graphs import random_graph

PLACES = 6
SPANS = st.lists(st.tuples(st.integers(0, PLACES), st.integers(1, 2)).map(lambda s: (s[0], s[0] + s[1])), max_size=2)
CALLS = st.lists(
    st.builds(Touched, SPANS, SPANS, st.sampled_from([None, 0, 1, SMALL, SMALL + 1])), min_size=1, max_size=40
)


def meet(before: Touched, after: Touched) -> bool:
    """Whether one writes a place that the other touches."""

    def places(spans):
        return {place for first, last in spans for place in range(first, last)}

    read, written = places(before.reads), places(before.writes)
    return bool(written & (places(after.reads) | places(after.writes)) or read & places(after.writes))


@settings(max_examples=300, deadline=None)
@given(CALLS, st.integers(1, 4))
def test_calls_that_meet_are_in_order(calls, threads):
    turns = turns_of(calls, threads)
    phase = np.cumsum([0, *(turn.barrier for turn in turns)])
    for j, after in enumerate(calls):
        for i, before in enumerate(calls[:j]):
            if meet(before, after) and phase[i] == phase[j]:
                assert turns[i].thread == turns[j].thread != ALL
    assert all(-1 <= turn.thread < threads for turn in turns)
    assert turns[-1].barrier


@settings(max_examples=300, deadline=None)
@given(CALLS, st.integers(1, 4))
def test_no_counter_serves_again_before_it_is_cleared(calls, threads):
    """That of a call of all threads is cleared while the calls behind the next barrier run."""
    turns = turns_of(calls, threads)
    phase = np.cumsum([0, *(turn.barrier for turn in turns)])
    last: dict[int, int] = {}
    for turn, now in zip(turns, phase, strict=False):
        if turn.thread == ALL:
            assert 0 <= turn.counter < 2 * TOGETHER
            assert now - last.get(turn.counter, -2) >= 2
            last[turn.counter] = now


def test_small_calls_that_do_not_meet_are_done_at_once_and_chains_by_one_thread():
    first, second = Touched([], [(0, 1)], 5), Touched([], [(1, 2)], 5)
    after_first, after_both = Touched([(0, 1)], [(2, 3)], 5), Touched([(1, 3)], [(3, 4)], 5)
    turns = turns_of([first, second, after_first, after_both], 2)
    assert turns == [Turn(0), Turn(1), Turn(0, barrier=True), Turn(0, barrier=True)]
    assert turns_of([first, after_first, second, after_both], 1)[0] == Turn(0)


def test_large_calls_wait_for_what_they_meet_only():
    large = [Touched([], [(i, i + 1)]) for i in range(3)]
    assert turns_of(large, 2) == [Turn(ALL, 0), Turn(ALL, 1), Turn(ALL, 2, barrier=True)]
    reader = Touched([(1, 2)], [(5, 6)], SMALL + 1)
    assert [turn.barrier for turn in turns_of([*large, reader, large[0]], 2)] == [False, False, True, False, True]
    assert [turn.counter for turn in turns_of([*large, reader, large[0]], 2)] == [0, 1, 2, TOGETHER, TOGETHER + 1]
    many = turns_of([Touched([], [(i, i + 1)]) for i in range(TOGETHER + 1)], 2)
    assert [turn.barrier for turn in many] == [*[False] * (TOGETHER - 1), True, True]


def test_a_chain_of_small_calls_has_one_barrier():
    y = graphrt.input("x", (1, 64))
    for _ in range(5):
        y = ops.add(ops.silu(y), y)
    plan = Scheduler(["cpu"], threads=2).plan(Graph(ops.rms_norm(y)))
    program = plan._steps[-1].__self__
    assert program.barriers == 1
    assert "barriers between 2 threads" in program.summary


@settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**63), st.integers(2, 4))
def test_random_graphs_on_several_threads_give_the_reference_result(seed, threads):
    case = random_graph(Draw(random.Random(seed).randint))
    oracle = Oracle(case.graph, case.inputs)
    plan = Scheduler(["cpu"], threads=threads).plan(case.graph)
    expected = oracle.run()
    got = plan.run(case.inputs)
    for want, have, coarse in zip(expected, got, case.coarse, strict=True):
        assert difference(have, want) <= tolerance(coarse)


@pytest.mark.parametrize(("preset", "most"), [("tiny-deepseek2", 17), ("tiny-mixtral", 13)])
def test_a_layer_has_few_barriers_when_a_token_is_decoded(preset, most, tmp_path):
    paths = {layers: synthesise(preset, tmp_path / f"{layers}.gguf", layers=layers, dtype="q8_0") for layers in (2, 3)}

    def barriers(layers: int, fuse: int) -> int:
        with graphrt.load(paths[layers], n_ctx=256, threads=2, backends=["cpu"], fuse=fuse) as model:
            plan = model.new_context().plan(1, 1, 256, "decode")
            return plan._steps[-1].__self__.barriers

    assert barriers(3, 1) - barriers(2, 1) <= most
    assert barriers(3, 0) - barriers(2, 0) >= 1.5 * most
