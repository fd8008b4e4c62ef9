"""Profiles of plans."""

import json
from itertools import pairwise

import numpy as np
import pytest

import graphrt
from graphrt import Graph, Scheduler, ops
from graphrt.backends.sim import SimBackend
from graphrt.profile import Profile, Step, pattern_of


@pytest.fixture(scope="module")
def plan():
    """Two layers of gate, up, swiglu, down over one input."""
    generator = np.random.default_rng(0)
    x = graphrt.input("x", (3, 32))
    for layer in range(2):
        gate, up, down = (
            graphrt.weight(f"blk.{layer}.ffn_{name}.weight", generator.standard_normal(shape, np.float32))
            for name, shape in (("gate", (64, 32)), ("up", (64, 32)), ("down", (32, 64)))
        )
        hidden = ops.swiglu(ops.mul_mat(gate, x), ops.mul_mat(up, x))
        x = ops.add(x, ops.mul_mat(down, hidden).named(f"ffn_out-{layer}")).named(f"l_out-{layer}")
    return Scheduler(["reference"]).plan(Graph(x))


def test_every_node_is_timed_alone_with_its_cost(plan):
    profile = plan.profile(repeats=2)
    assert [step.name for step in profile.steps] == [node.name for node in plan.graph.nodes]
    assert all(step.seconds > 0 and step.backend == "reference" for step in profile.steps)
    assert [a.start < b.start for a, b in pairwise(profile.steps)] == [True] * 9
    product = profile.steps[0]
    assert (product.op, product.pattern, product.module) == ("mul_mat", "blk.*.ffn_gate.weight", "dense FFN")
    assert product.flops == 2 * 3 * 64 * 32
    assert profile.execute_seconds > 0


def test_a_schedule_is_compiled_and_run_over_the_inputs_given():
    x = graphrt.input("x", (2, 4))
    schedule = Scheduler(["reference"]).schedule(Graph(ops.sqr(x).named("square")))
    assert [step.name for step in schedule.profile(repeats=1).steps] == ["square"]
    profile = schedule.profile({"x": np.full((2, 4), 3, np.float32)}, repeats=2)
    assert (profile.repeats, profile.steps[0].flops) == (2, 8)
    with pytest.raises(graphrt.GraphError, match="no input is called"):
        schedule.profile({"y": np.zeros((2, 4), np.float32)})


def test_a_schedules_profile_runs_what_was_given():
    """Numerics are checked in its runs too: zeros pass, what overflows is found."""
    x = graphrt.input("x", (2, 4))
    schedule = Scheduler(["reference"], check_numerics=1).schedule(Graph(ops.sqr(x)))
    schedule.profile(repeats=1)
    with pytest.raises(graphrt.NumericsError):
        schedule.profile({"x": np.full((2, 4), 1e30, np.float32)}, repeats=1)


def test_sums_hold_every_step_once(plan):
    profile = plan.profile(repeats=1)
    counts = {one.name: one.count for one in profile.by("op")}
    assert counts == {"mul_mat": 6, "swiglu": 2, "add": 2}
    assert {one.name: one.count for one in profile.by("module")} == {"dense FFN": 8, "residual": 2}
    for key in ("op", "pattern", "module", "backend"):
        sums = profile.by(key)
        assert sum(one.seconds for one in sums) == pytest.approx(profile.seconds)
        assert sum(one.share for one in sums) == pytest.approx(1)
        assert [one.seconds for one in sums] == sorted((one.seconds for one in sums), reverse=True)


def step(name: str, seconds: float, **others) -> Step:
    about = {"op": "mul_mat", "pattern": name, "module": "attention", "backend": "cpu", "flops": 0, "nbytes": 0}
    return Step(name=name, start=0.0, last=seconds, seconds=seconds, **{**about, **others})


def test_rates_are_work_over_time():
    profile = Profile((step("a", 0.5, flops=10, nbytes=4), step("b", 1.5, flops=30)), 1.8, repeats=1)
    (total,) = profile.by("module")
    assert (total.count, total.seconds, total.flops_rate, total.bytes_rate) == (2, 2.0, 20.0, 2.0)
    assert [one.share for one in profile.by("pattern")] == [0.75, 0.25]


@pytest.fixture(scope="module")
def on_two_backends():
    """The profile of a plan that copies to a device and back."""
    x = graphrt.input("x", (3, 32))
    y = ops.mul_mat(graphrt.weight("w", np.ones((32, 32), np.float32)), ops.silu(x))
    scheduler = Scheduler([SimBackend(), "reference"], overrides=["w=sim"], node_overrides=["^silu$=reference"])
    return scheduler.plan(Graph(ops.sqr(y))).profile(repeats=3)


def test_the_trace_is_in_the_trace_event_format(on_two_backends):
    """The JSON array form: names, phases and numbers as Chrome's Trace Event Format asks for them."""
    events = json.loads(json.dumps(on_two_backends.trace("pp3", process=1), allow_nan=False))
    for event in events:
        assert event["ph"] in ("M", "X")
        assert type(event["pid"]) is int
        assert isinstance(event["name"], str)
        assert isinstance(event["args"], dict)
        assert event["name"]
    for event in (event for event in events if event["ph"] == "M"):
        assert event["name"] in ("process_name", "thread_name")
        assert isinstance(event["args"]["name"], str)
    for event in (event for event in events if event["ph"] == "X"):
        assert type(event["tid"]) is int
        assert isinstance(event["cat"], str)
        assert event["ts"] >= 0
        assert event["dur"] > 0


def test_the_trace_has_a_titled_row_for_each_backend_and_a_box_for_each_step(on_two_backends):
    events = on_two_backends.trace("pp3", process=1)
    titles = {event.get("tid"): event["args"]["name"] for event in events if event["ph"] == "M"}
    assert titles == {None: "pp3", 0: "reference", 1: "host -> sim", 2: "sim", 3: "sim -> host"}
    boxes = [event for event in events if event["ph"] == "X"]
    assert [box["name"] for box in boxes] == [step.name for step in on_two_backends.steps]
    assert all(titles[box["tid"]] == box["args"]["backend"] for box in boxes)
    assert {event["pid"] for event in events} == {1}


def test_boxes_follow_each_other(on_two_backends):
    """One step runs at a time, so no box may reach into the next; a viewer would drop such a one."""
    boxes = [event for event in on_two_backends.trace() if event["ph"] == "X"]
    assert boxes[0]["ts"] == 0
    assert all(box["ts"] + box["dur"] <= after["ts"] for box, after in pairwise(boxes))


def test_it_prints_as_tables(plan):
    text = str(plan.profile(repeats=1))
    for words in ("one run: ", "blk.*.ffn_down.weight", "dense FFN", "GFLOP/s", "mul_mat"):
        assert words in text


def test_many_patterns_are_summed_in_the_last_row():
    text = str(Profile(tuple(step(f"node{letter}", 1.0) for letter in "abcdefghijklmnopqrstuvwxyz"), 1.0, repeats=1))
    assert "2 others" in text


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("blk.13.ffn_up.weight", "blk.*.ffn_up.weight"),
        ("attn_norm-3", "attn_norm-*"),
        ("mul_mat_17", "mul_mat_*"),
        ("token_embd.weight", "token_embd.weight"),
        ("output", "output"),
    ],
)
def test_patterns_have_no_layers_number(name, pattern):
    assert pattern_of(name) == pattern
