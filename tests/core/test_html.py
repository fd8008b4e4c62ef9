"""The page of a schedule: well-formed, complete, alone, and safe whatever nodes are called."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

import graphrt
from graphrt import Graph, Scheduler, ops, overrides
from graphrt.backends.sim import SimBackend
from graphrt.html import page
from graphrt.schedule import Schedule
from tests.shapes import graph

VOID = {"meta", "input", "br", "link"}
NASTY = "</script><b>&\"'{{data}}<!--"


class Reader(HTMLParser):
    """Checks that every element is closed in order, and keeps the data and every address."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.data = ""
        self._in_data = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action")]
        self._in_data = ("id", "data") in attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._in_data = False

    def handle_data(self, data: str) -> None:
        if self._in_data:
            self.data += data


def read(text: str) -> tuple[Reader, dict[str, Any]]:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader, json.loads(reader.data)


@pytest.fixture(scope="module")
def schedule() -> Schedule:
    model = graph("tiny-mixtral", 2, tokens=128, rows=128, cells=256)
    return Scheduler([SimBackend("sim"), "cpu"], overrides=[overrides.cpu_moe(), ".=sim"]).schedule(model)


def test_the_page_is_well_formed_and_loads_nothing(schedule: Schedule) -> None:
    text = page(schedule, "tiny-mixtral")
    reader, _ = read(text)
    assert reader.addresses == []
    # The one address is the name of SVG's namespace, which nothing loads.
    assert set(re.findall(r"https?://[^\s\"'`]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", text)
    assert "{{" not in text


def test_every_tensor_stands_once_and_knows_its_place(schedule: Schedule) -> None:
    _, data = read(page(schedule, "tiny-mixtral"))
    names = [tensor["name"] for tensor in data["tensors"]]
    expected = [*schedule.graph.leafs, *schedule.graph.nodes]
    assert names == [tensor.name for tensor in expected]
    for tensor, shown in zip(expected, data["tensors"], strict=True):
        placement = schedule.placements.nodes.get(tensor)
        if placement is not None:
            assert shown["reason"] == placement.reason
            assert shown["backend"] == placement.backend.name == data["splits"][shown["split"]]["backend"]
            assert shown["rejected"] == list(placement.rejected)
        assert [names[i] for i in shown["sources"]] == [src.name for src in tensor.srcs if src is not None]
        assert tensor.is_leaf or shown["split"] is not None


def test_crossing_edges_have_their_bytes(schedule: Schedule) -> None:
    _, data = read(page(schedule, "tiny-mixtral"))
    shown = [(copy["nbytes"], copy["byExpert"]) for part in data["splits"] for copy in part["copies"]]
    shown += [(copy["nbytes"], copy["byExpert"]) for copy in data["outputCopies"]]
    assert shown == [(copy.nbytes, copy.experts is not None) for copy in schedule.copies.all()]
    assert any(by_expert for _, by_expert in shown)


def test_names_cannot_break_out() -> None:
    x = graphrt.input(f"x{NASTY}", (2, 4))
    node = ops.mul_mat(graphrt.weight("w", np.ones((4, 4), np.float32)), x).named(NASTY)
    reader, data = read(page(Scheduler(["reference"]).schedule(Graph(node)), NASTY))
    assert data["tensors"][-1]["name"] == NASTY
    assert "b" not in reader.tags
    assert reader.tags.count("script") == 2


def test_a_view_is_shown_with_its_value_or_its_reader() -> None:
    w = graphrt.weight("w", np.ones((8, 4), np.float32))
    view = w[:4]
    product = ops.mul_mat(view, graphrt.input("x", (2, 4)))
    schedule = Scheduler(["reference"]).schedule(Graph(ops.silu(product.reshape(8))))
    _, data = read(page(schedule, "views"))
    assert [tensor["split"] for tensor in data["tensors"] if tensor["op"]] == [0] * len(schedule.graph.nodes)
    assert [tensor["viewOf"] for tensor in data["tensors"] if tensor["op"] in ("view", "reshape")] == ["w", "mul_mat_0"]
