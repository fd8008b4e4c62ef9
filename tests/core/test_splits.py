"""Splits: few, in an order that the data allows."""

from __future__ import annotations

import numpy as np

import graphrt
from graphrt import Graph, Scheduler, Tensor, ops
from graphrt.backends.sim import SimBackend
from graphrt.schedule import Schedule

D = 16


def weight(name: str, *shape: int) -> Tensor:
    return graphrt.weight(name, np.zeros(shape, np.float32))


def schedule(y: Tensor | list[Tensor], *devices: SimBackend, **options) -> Schedule:
    return Scheduler([*(devices or (SimBackend(),)), "reference"], **options).schedule(Graph(y))


def shape_of(made: Schedule) -> list[tuple[str, list[str]]]:
    return [(part.backend.name, [node.op.name for node in part.nodes]) for part in made.splits]


def x(rows: int = 1) -> Tensor:
    return graphrt.input("x", (rows, D))


def test_one_backend_makes_one_split():
    y = x()
    for _ in range(10):
        y = ops.silu(y)
    assert len(schedule(y).splits) == 1


def test_a_chain_is_cut_where_its_weights_change_device():
    y = x()
    for layer in range(4):
        y = ops.mul_mat(weight(f"blk.{layer}.w", D, D), y)
    made = schedule(y, overrides=[r"blk\.[12]=sim"])
    assert shape_of(made) == [("reference", ["mul_mat"]), ("sim", ["mul_mat"] * 2), ("reference", ["mul_mat"])]


def test_independent_work_of_one_backend_does_not_wait_behind_the_other():
    """Four branches that begin on the host and end on the device: built one by one, run in two splits and one join."""
    branches = []
    for branch in range(4):
        host = ops.mul_mat(weight(f"host.{branch}", D, D), x() if not branch else branches[0].srcs[1].srcs[1])
        branches.append(ops.mul_mat(weight(f"device.{branch}", D, D), host))
    y = branches[0] + branches[1] + (branches[2] + branches[3])
    made = schedule(y, overrides=["device=sim"])
    assert [part.backend.name for part in made.splits] == ["reference", "sim"]
    assert len(made.splits[0].nodes) == 4


def test_a_layer_with_experts_on_the_host_takes_three_splits():
    scores = ops.mul_mat(weight("blk.0.ffn_gate_inp", 4, D), x())
    chosen = ops.top_k(scores, k=2)
    up = ops.mul_mat_id(weight("blk.0.ffn_up_exps", 4, D, D), x_of(scores).reshape(1, 1, D), chosen)
    down = ops.mul_mat_id(weight("blk.0.ffn_down_exps", 4, D, D), ops.silu(up), chosen)
    y = ops.mul_mat(weight("output", D, D), ops.weighted_sum(down, graphrt.input("p", (1, 2))))
    made = schedule(y, overrides=["exps=reference", ".=sim"])
    assert [part.backend.name for part in made.splits] == ["sim", "reference", "sim"]


def x_of(scores: Tensor) -> Tensor:
    source = scores.srcs[1]
    assert source is not None
    return source


def test_a_split_ends_where_the_experts_have_been_chosen_that_are_copied_for_it():
    """An offloaded mul_mat_id in the split that chooses its experts: only after the cut is it known which to copy."""
    tokens = 64
    gate = ops.mul_mat(weight("gate", 4, D), x(tokens))
    chosen = ops.top_k(gate, k=2)
    y = ops.mul_mat_id(weight("up_exps", 4, D, D), x_of(gate).reshape(tokens, 1, D), chosen)
    made = schedule(y, overrides=["gate=sim"])
    assert shape_of(made) == [("sim", ["mul_mat", "top_k"]), ("sim", ["mul_mat_id"])]


def test_views_belong_to_no_split_and_order_is_kept_through_them():
    y = ops.mul_mat(weight("w", D, D), x(2)).reshape(4, D // 2)
    z = ops.silu(y[1:])
    made = schedule(z, overrides=["w=sim"], node_overrides=["silu=reference"])
    assert shape_of(made) == [("sim", ["mul_mat"]), ("reference", ["silu"])]
