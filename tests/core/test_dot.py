"""DOT output: every tensor and every edge once, names quoted, layers in boxes."""

from __future__ import annotations

import re

import numpy as np

import graphrt
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
    (box,) = re.findall(r"subgraph cluster_3 \{(.*?)\n  \}", dot(layered_graph()), re.DOTALL)
    assert "blk.3.ffn_up.weight" in box
    assert "ffn_up-3" in box
    assert "x\\ninput" not in box


def test_backends_colour_the_nodes() -> None:
    graph = layered_graph()
    (silu,) = graph.outputs
    text = dot(graph, {silu: "cpu"})
    assert r"silu f32[1, 4]\ncpu" in text
    assert text.count("penwidth=2") == 1
