"""DOT output: every tensor and every edge once, names quoted, layers in boxes."""

from __future__ import annotations

import re

import numpy as np

import graphrt
from graphrt.backends.sim import SimBackend
from graphrt.dot import dot


def layered_graph() -> graphrt.Graph:
    x = graphrt.input("x", (2, 4))
    w = graphrt.weight("blk.3.ffn_up.weight", np.ones((4, 4), np.float32))
    hidden = graphrt.ops.mul_mat(w, x).named("ffn_up-3")
    return graphrt.Graph(graphrt.ops.silu(hidden[:1]).named('say "hi"\\now'))


def test_every_tensor_and_edge_stands_once() -> None:
    graph = layered_graph()
    text = dot(graph)
    assert text.count(" [label=") == len(graph.nodes) + len(graph.leafs)
    edges = re.findall(r"n\d+ -> n\d+", text)
    assert len(edges) == len(set(edges)) == sum(len(node.srcs) for node in graph.nodes)


def test_names_are_quoted() -> None:
    assert r'label="say \"hi\"\\now\nsilu f32[1, 4]"' in dot(layered_graph())


def test_weights_and_nodes_of_a_layer_share_a_box() -> None:
    (box,) = re.findall(r'label="layer 3";(.*?)\n  \}', dot(layered_graph()), re.DOTALL)
    assert "blk.3.ffn_up.weight" in box
    assert "ffn_up-3" in box
    assert "x\\ninput" not in box


def test_a_schedule_has_its_splits_as_boxes_and_bytes_on_crossing_edges() -> None:
    graph = layered_graph()
    sim = SimBackend("sim")
    schedule = graphrt.Scheduler([sim, "cpu"], overrides=["ffn_up=sim"], node_overrides=["silu=cpu"]).schedule(graph)
    text = dot(schedule)
    assert [part.backend.name for part in schedule.splits] == ["sim", "cpu"]
    first, second = re.findall(r'label="split \d: \w+";(.*?)\n  \}', text, re.DOTALL)
    assert "ffn_up-3" in first
    assert r"silu f32[1, 4]\ncpu" in second
    assert 'label="32 B"' in text
    assert text.count(" [label=") - text.count(' B"') == len(graph.nodes) + len(graph.leafs)
    assert text.count("color=") >= 2


def test_backends_are_told_apart_by_colour() -> None:
    graph = layered_graph()
    schedule = graphrt.Scheduler([SimBackend("sim"), "cpu"], overrides=["ffn_up=sim"]).schedule(graph)
    (colour,) = set(re.findall(r', color="(#\w+)", penwidth=2\];', dot(schedule)))
    assert colour.startswith("#")
