"""Weights that every run copies: found, explained, and kept in place by the override that the warning names."""

from __future__ import annotations

import re

import numpy as np
import pytest

import graphrt
from graphrt import Graph, Scheduler, ops
from graphrt.backends.sim import SimBackend
from graphrt.explain import describe
from graphrt.schedule import Schedule
from graphrt.tensor import Tensor

SIDE = 64
NBYTES = SIDE * SIDE * 4


def matrix(name: str, side: int = SIDE) -> Tensor:
    return graphrt.weight(name, np.eye(side, dtype=np.float32))


def layers(count: int, tokens: int = 1, side: int = SIDE) -> Graph:
    x = graphrt.input("x", (tokens, side))
    for layer in range(count):
        x = ops.silu(ops.mul_mat(matrix(f"blk.{layer}.ffn_up.weight", side), x).named(f"up-{layer}"))
    return Graph(x)


def schedule(graph: Graph, *rules: str, nodes: tuple[str, ...] = (), missing: tuple[str, ...] = ()) -> Schedule:
    backends = [SimBackend(missing=missing), "reference"]
    return Scheduler(backends, overrides=rules, node_overrides=nodes).schedule(graph)


def remedied(made: Schedule, **options: tuple[str, ...]) -> Schedule:
    """The same graph with the override that the only warning names, before all others."""
    (weights,) = made.moving
    (rule,) = re.findall(r'"(.*)" as the first override would save that', weights.remedy)
    return schedule(made.graph, rule, *(each.text for each in made.rules), **options)


def test_weights_on_a_device_that_lacks_their_op() -> None:
    made = schedule(layers(3), "ffn=sim", missing=("mul_mat",))
    (weights,) = made.moving
    assert (weights.count, weights.nbytes) == (3, 3 * NBYTES)
    assert str(weights) == (
        f"blk.*.ffn_up.weight (3 weights): {3 * NBYTES:,} bytes are copied from sim to host at every run, because "
        r"sim has no kernel for mul_mat; "
        r'"^blk\.(0|1|2)\.ffn_up\.weight$=reference" as the first override would save that'
    )
    better = remedied(made, missing=("mul_mat",))
    assert better.moving == []
    assert not [copy for copy in better.copies.all() if copy.value.role == "weight"]


def test_a_weight_on_the_host_whose_node_a_rule_moved() -> None:
    made = schedule(layers(2), nodes=("^up-1$=sim",))
    (weights,) = made.moving
    assert str(weights) == (
        f"blk.1.ffn_up.weight: {NBYTES:,} bytes are copied from host to sim at every run, because "
        r'up-1 runs on sim: override "^up-1$=sim"; '
        r'"^blk\.1\.ffn_up\.weight$=sim" as the first override would save that'
    )
    assert remedied(made, nodes=("^up-1$=sim",)).moving == []


def test_a_weight_that_both_memories_read_has_no_such_rule() -> None:
    x, w = graphrt.input("x", (1, SIDE)), matrix("w")
    y = ops.add(ops.mul_mat(w, x).named("here"), ops.mul_mat(w, ops.silu(x)).named("there"))
    (weights,) = schedule(Graph(y), nodes=("^there$=sim",)).moving
    assert weights.remedy == "both memories read it: bring its readers to one with --override-node"


def test_an_offloaded_weight_moves_by_intent() -> None:
    made = schedule(layers(2, tokens=32))
    assert [copy.value.name for copy in made.copies.all() if copy.value.role == "weight"]
    assert made.moving == []


@pytest.mark.parametrize("side", [4, 63])
def test_a_few_bytes_are_not_worth_a_word(side: int) -> None:
    assert schedule(layers(1, side=side), "ffn=sim", missing=("mul_mat",)).moving == []


def test_the_debug_output_and_the_data_have_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    made = schedule(layers(1), "ffn=sim", missing=("mul_mat",))
    assert f"warning: {made.moving[0]}" in describe(made, 1).splitlines()
    assert made.explain().moving == tuple(made.moving)
    assert '"moving": [' in made.explain().as_json()
    Scheduler([SimBackend(missing=["mul_mat"]), "reference"], overrides=["ffn=sim"], sched_debug=1).plan(layers(1))
    assert "warning: blk.0.ffn_up.weight: " in capsys.readouterr().err


def test_a_scheduler_remembers_each_once() -> None:
    scheduler = Scheduler([SimBackend(missing=["mul_mat"]), "reference"], overrides=["ffn=sim"])
    for tokens in (1, 2):
        scheduler.fork().schedule(layers(1, tokens))
    assert len(scheduler.moving()) == 1
