"""What a schedule says of itself: golden files of the debug output, and the same as data.

GRAPHRT_REGENERATE=1 writes the golden files anew; read the difference before committing it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import graphrt
from graphrt import Graph, Scheduler, ops, overrides
from graphrt.backend import Backend
from graphrt.backends.reference import ReferenceBackend
from graphrt.backends.sim import SimBackend
from graphrt.explain import describe
from graphrt.schedule import Schedule
from tests.shapes import graph

GOLDEN = Path(__file__).parent / "golden"
ON_DEVICE = ".=gpu0"


class HostBackend(ReferenceBackend):
    """Stands in for the CPU backend, whose scratch memory and kernels depend on the machine."""

    name = "cpu"


def mixtral(tokens: int, rules: list[str], *devices: Backend, **settings: object) -> Schedule:
    model = graph("tiny-mixtral", 1, tokens=tokens, rows=tokens, cells=256)
    return Scheduler([*devices, HostBackend()], overrides=rules, **settings).schedule(model)


def layers_on_device() -> Schedule:
    model = graph("tiny-mixtral", 2, cells=256)
    return Scheduler([SimBackend("gpu0"), HostBackend()], overrides=overrides.gpu_layers(2, 2, "gpu0")).schedule(model)


def missing_op() -> Schedule:
    return mixtral(1, [ON_DEVICE], SimBackend("gpu0", missing=("soft_max", "attention")))


def rejected_placement() -> Schedule:
    """The user wants the cache on a device that cannot write it, and a product where its op is missing."""
    return mixtral(1, [r"cache_[kv]-0=gpu0", r"attn_output=gpu0"], SimBackend("gpu0", missing=("set_rows", "mul_mat")))


CASES: dict[str, tuple[Callable[[], Schedule], int]] = {
    "all_on_cpu": (lambda: mixtral(1, []), 2),
    "all_on_cpu_splits": (lambda: mixtral(1, []), 1),
    "experts_on_cpu_decode": (lambda: mixtral(1, [overrides.cpu_moe(), ON_DEVICE], SimBackend("gpu0")), 3),
    # 2 of 8 experts: a batch of 64 brings each weight 16 rows, one of 128 brings 32, and only then is it offloaded.
    "experts_on_cpu_prompt_64": (lambda: mixtral(64, [overrides.cpu_moe(), ON_DEVICE], SimBackend("gpu0")), 3),
    "experts_on_cpu_prompt_128": (lambda: mixtral(128, [overrides.cpu_moe(), ON_DEVICE], SimBackend("gpu0")), 3),
    "experts_on_cpu_prompt_128_asynchronous": (
        lambda: mixtral(128, [overrides.cpu_moe(), ON_DEVICE], SimBackend("gpu0", asynchronous=True)),
        1,
    ),
    "dense_offload_31": (lambda: mixtral(31, [], SimBackend("gpu0")), 3),
    "dense_offload_32": (lambda: mixtral(32, [], SimBackend("gpu0")), 3),
    "gpu_layers": (layers_on_device, 2),
    "missing_op": (missing_op, 3),
    "rejected_placement": (rejected_placement, 3),
}


@pytest.mark.parametrize("name", CASES)
def test_debug_output_is_as_recorded(name: str) -> None:
    make, level = CASES[name]
    text = describe(make(), level) + "\n"
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("GRAPHRT_REGENERATE"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def test_every_golden_file_has_a_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_blank_and_no_name_is_cut(name: str) -> None:
    schedule = CASES[name][0]()
    text = describe(schedule, 3)
    told = schedule.explain()
    assert sum(len(part.nodes) for part in told.splits) == len(schedule.placements.nodes)
    for part in told.splits:
        for node in part.nodes:
            assert node.op
            assert node.reason
            assert node.backend == part.backend
            for tensor in (node.result, *node.sources):
                assert tensor.name
                assert f"{tensor.name} {tensor.dtype}[" in text
                assert tensor.backend
                assert tensor.memory


def test_a_constant_without_a_name_is_not_blank() -> None:
    y = ops.add(graphrt.input("x", (2, 4)), graphrt.constant("", np.ones((2, 4), np.float32)))
    assert "add(x f32[2, 4] 32 B @host, constant_1 f32[2, 4] 32 B @host)" in describe(Scheduler().schedule(y), 2)


def test_bytes_add_up() -> None:
    schedule = mixtral(1, [overrides.cpu_moe(), ON_DEVICE], SimBackend("gpu0"))
    told = schedule.explain()
    assert told.compute_bytes == sum(memory.compute_bytes for memory in told.memories)
    leafs = {home.tensor.name: home.tensor.nbytes for home in told.homes}
    assert sum(memory.resident_bytes for memory in told.memories) == sum(leafs.values())
    assert [copy.nbytes for copy in told.output_copies] == [schedule.graph.outputs[0].nbytes]


def test_json_holds_the_same() -> None:
    schedule = mixtral(1, [overrides.cpu_moe(), ON_DEVICE], SimBackend("gpu0"))
    told = json.loads(schedule.explain().as_json())
    nodes = [node for part in told["splits"] for node in part["nodes"]]
    assert [node["result"]["name"] for node in nodes] == [n.name for part in schedule.splits for n in part.nodes]
    assert {node["backend"] for node in nodes} == {"cpu", "gpu0"}
    assert told["rules"][0] == [overrides.cpu_moe(), 3]


def test_a_schedule_of_one_node() -> None:
    told = Scheduler().schedule(Graph(ops.silu(graphrt.input("x", (2, 4))))).explain()
    assert told.nodes == 1
    assert told.splits[0].nodes[0].sources[0].backend == "host"


def test_level_4_times_every_node_and_copy_of_each_run(capsys: pytest.CaptureFixture[str]) -> None:
    w, x = graphrt.weight("w", np.ones((4, 4), np.float32)), graphrt.input("x", (2, 4))
    product = ops.mul_mat(w, x).named("product")
    scheduler = Scheduler([SimBackend("sim"), "reference"], overrides=["w=sim"], sched_debug=4)
    plan = scheduler.plan(ops.silu(product).named("y"), assigned={product: "sim"})
    assert describe(plan.schedule, 3) in capsys.readouterr().err
    result = plan.run(x=np.ones((2, 4), np.float32))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("run: ")
    times = [re.fullmatch(r" +\d+\.\d{3} ms  (.+)", line) for line in lines[1:]]
    named = [time[1] for time in times if time]
    assert named == [
        "copy x @host -> sim",
        "product = mul_mat @sim",
        "y = silu @sim",
        "copy y @sim -> host",
    ]
    assert np.allclose(result[0], 4 / (1 + np.exp(-4)))
