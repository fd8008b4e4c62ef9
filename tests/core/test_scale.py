"""Scheduling is fast and grows linearly; running a plan again costs little Python a split."""

from __future__ import annotations

import numpy as np
import pytest

import graphrt
from docs.benchmarks.placement_scale import LIMIT, large_graph, measure, seconds
from graphrt import Graph, Scheduler, Settings, ops
from graphrt.backend import create
from graphrt.plan import Plan

SPLIT_LIMIT = 30e-6


def alternating_plan(nodes: int) -> Plan:
    """A chain of nodes that changes between two CPU backends at every one."""
    settings = Settings.from_env(threads=1)
    first, second = create("cpu", settings), create("cpu", settings)
    first.name, second.name = "first", "second"
    y = graphrt.input("x", (4,))
    for number in range(nodes):
        y = ops.silu(y).named(f"{'even' if number % 2 == 0 else 'odd'}-{number}")
    return Scheduler([first, second], node_overrides=["even=first", "odd=second"]).plan(Graph(y))


def test_deepseek_v3_is_scheduled_and_explained_in_time() -> None:
    result = measure(61)
    assert result.nodes >= 5000
    assert result.splits >= 2 * 58  # each of 58 layers with experts goes to the host and back
    assert result.total < LIMIT


def test_the_time_grows_linearly() -> None:
    per_node = []
    for layers in (20, 80):
        result = measure(layers)
        per_node.append(result.total / result.nodes)
    assert per_node[1] < 1.6 * per_node[0]


def test_weights_without_data_are_never_read() -> None:
    graph = large_graph(4)
    assert all(leaf.data is None for leaf in graph.leafs if leaf.role == "weight")


@pytest.mark.parametrize("splits", [10, 500])
def test_running_again_costs_little_python_a_split(splits: int) -> None:
    plan = alternating_plan(splits)
    assert len(plan.schedule.splits) == splits
    plan.run(x=np.zeros(4, np.float32))
    # The kernels of four elements take next to nothing, so this is an upper bound.
    assert seconds(plan.execute, repeats=20) / splits < SPLIT_LIMIT
