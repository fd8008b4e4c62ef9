"""Each rule of placement, on small graphs: where, and why in words."""

from __future__ import annotations

import numpy as np
import pytest

import graphrt.placement
from graphrt import Graph, PlacementError, Scheduler, SettingsError, Tensor, ops
from graphrt.backend import Backend, Program, Split, Support
from graphrt.backends.blas import BlasBackend
from graphrt.backends.reference import ReferenceBackend
from graphrt.backends.sim import SimBackend
from graphrt.placement import Placement, Placements
from graphrt.settings import Settings

D = 64


def weight(name: str, *shape: int) -> Tensor:
    return graphrt.weight(name, np.zeros(shape, np.float32))


def place(y: Tensor, *backends: Backend | str, phase: str | None = None, assigned=None, **options) -> Placements:
    scheduler = Scheduler([*(backends or (SimBackend(),)), "reference"], **options)
    return scheduler.schedule(Graph(y, phase=phase), assigned=assigned).placements


def of(placements: Placements, node: Tensor) -> tuple[str, str]:
    """A node's backend and reason."""
    placement: Placement = placements.nodes.get(node) or placements.homes[node]
    return placement.backend.name, placement.reason


def x(rows: int = 1) -> Tensor:
    return graphrt.input("x", (rows, D))


def test_weights_and_states_are_on_the_host_unless_told():
    w, cache = weight("w", D, D), graphrt.state("cache", (4, D))
    y = ops.add(ops.mul_mat(w, x(4)), cache)
    placements = place(y)
    assert of(placements, w) == ("reference", "its data is on the host")
    assert of(placements, cache) == ("reference", "states are on the host")


def test_the_users_word_comes_before_every_rule():
    w = weight("w", D, D)
    y = ops.mul_mat(w, x())
    z = ops.silu(y)
    options = {"overrides": ["w=sim"], "node_overrides": ["silu=sim"]}
    placements = place(z, assigned={w: "reference", z: "reference"}, **options)
    assert of(placements, w) == ("reference", "assigned by the user")
    assert of(placements, z) == ("reference", "assigned by the user")
    assert of(placements, y) == ("reference", "assigned by the user")


def test_an_assignment_to_no_backend_is_an_error_that_lists_them():
    y = ops.silu(x())
    with pytest.raises(SettingsError, match=r'assigned to "gpu", which is no backend; there are: sim, reference'):
        place(y, assigned={y: "gpu"})


def test_a_node_runs_where_its_matrix_lives():
    first, second = weight("blk.0.w", D, D), weight("blk.1.w", D, D)
    a = ops.mul_mat(first, x())
    b = ops.mul_mat(second, a)
    placements = place(b, overrides=[r"blk\.1=sim"])
    assert of(placements, a) == ("reference", "weight blk.0.w is on the host")
    assert of(placements, b) == ("sim", r'override "blk\.1=sim"')


@pytest.mark.parametrize("make", [lambda v, y: ops.mul(y, v), lambda v, y: ops.rms_norm(y, v)], ids=["mul", "rms_norm"])
def test_a_vector_on_the_host_does_not_drag_an_op_off_the_device(make):
    w, vector = weight("w", D, D), weight("norm", D)
    y = ops.mul_mat(w, x())
    z = make(vector, y)
    placements = place(z, overrides=["^w$=sim"])
    assert of(placements, vector)[0] == "reference"
    assert of(placements, z) == ("sim", f"stays with its neighbour {y.name}")


def test_rope_factors_and_sinks_do_not_drag_rope_and_attention():
    w, tokens, cells = weight("wq", D, D), 2, 4
    q = ops.mul_mat(w, x(tokens)).reshape(tokens, 1, D)
    positions = graphrt.input("positions", (tokens,), "i32")
    turned = ops.rope(q, positions, weight("rope_freqs.weight", D // 2))
    k = graphrt.state("cache_k", (cells, 1, D))
    sequences = graphrt.input("q_seq", (tokens,), "i32")
    cell_pos, cell_seq = graphrt.input("cell_pos", (cells,), "i32"), graphrt.input("cell_seq", (cells,), "i64")
    sinks = weight("attn_sinks.weight", 1)
    y = ops.attention(turned, k, k, positions, sequences, cell_pos, cell_seq, sinks, scale=0.1)
    placements = place(y, overrides=["wq=sim", "cache=sim"])
    assert of(placements, turned)[0] == of(placements, y)[0] == "sim"


def test_a_matrix_of_one_row_counts_as_a_vector():
    w, row = weight("w", D, D), weight("row", 1, D)
    z = ops.mul(ops.mul_mat(w, x()), row)
    assert of(place(z, overrides=["^w$=sim"]), z)[0] == "sim"


def test_views_take_no_backend_and_lie_with_their_source():
    y = ops.mul_mat(weight("w", D, D), x(2))
    view = y.reshape(4, D // 2)[1:]
    placements = place(ops.silu(view), overrides=["w=sim"])
    assert view not in placements.nodes
    assert placements.memory_of(view) == placements.memory_of(y) == "sim"


def test_a_write_runs_where_its_target_lives_whatever_a_rule_says():
    cache = graphrt.state("cache", (4, D))
    written = ops.set_rows(cache, x(), graphrt.input("ids", (1,), "i32"))
    assert of(place(written, overrides=["cache=sim"]), written) == ("sim", 'override "cache=sim"')
    placements = place(written, node_overrides=["set_rows=sim"])
    assert of(placements, written) == ("reference", "writes cache, which is on the host")
    assert placements.nodes[written].rejected == ('override "set_rows=sim": it writes cache, which is on reference',)


def test_a_state_stays_on_the_host_if_the_device_cannot_write_it():
    cache = graphrt.state("cache", (4, D))
    written = ops.set_rows(cache, x(), graphrt.input("ids", (1,), "i32"))
    placements = place(written, SimBackend(missing={"set_rows"}), overrides=["cache=sim"])
    home = placements.homes[cache]
    assert (home.backend.name, home.rejected) == (
        "reference",
        ('override "cache=sim": sim cannot write it: sim has no kernel for set_rows',),
    )


def test_what_writes_into_a_result_is_placed_with_it():
    copied = ops.dup(x(2))
    written = ops.cpy(copied[1:], graphrt.input("y", (1, D)))
    placements = place(written, node_overrides=["dup=sim"])
    assert of(placements, written) == ("sim", f"writes {copied.name}, which is on sim")
    refused = place(written, SimBackend(missing={"cpy"}), node_overrides=["dup=sim"])
    assert of(refused, copied)[0] == of(refused, written)[0] == "reference"
    assert "sim cannot write it: sim has no kernel for cpy" in " ".join(refused.nodes[copied].rejected)


def test_an_op_that_the_device_lacks_falls_back_and_the_reason_says_so():
    w = weight("w", D, D)
    y = ops.mul_mat(w, x())
    z = ops.silu(y)
    placements = place(z, SimBackend(missing={"silu"}), overrides=["w=sim"])
    assert of(placements, y)[0] == "sim"
    assert of(placements, z)[0] == "reference"
    assert placements.nodes[z].rejected == ("sim: sim has no kernel for silu",)


class Picky(ReferenceBackend):
    """A host backend that refuses everything."""

    name = "picky"

    def supports(self, node: Tensor) -> Support:
        return Support(False, "it takes nothing", "ask another")


class Nothing(Backend):
    """The only backend, and it supports nothing."""

    name = "reference"

    def supports(self, node: Tensor) -> Support:
        return Support(False, "it takes nothing", "ask another")

    def compile(self, split: Split) -> Program:
        raise NotImplementedError


def test_a_node_that_nothing_supports_is_an_error_with_every_reason_and_remedy():
    with pytest.raises(PlacementError, match=r"no backend can run .*: reference: it takes nothing \(ask another\)"):
        Scheduler([Nothing()]).schedule(Graph(ops.silu(x())))


def test_on_the_host_the_first_that_supports_a_node_takes_it_and_says_who_did_not():
    y = ops.mul_mat(weight("w", D, D), x())
    placements = place(y, Picky())
    assert of(placements, y) == ("reference", "weight w is on the host; not on picky: it takes nothing")
    assert placements.nodes[y].rejected == ("picky: it takes nothing (ask another)",)


def test_blas_takes_prompts_from_its_batch_on_and_only_products():
    blas = BlasBackend(Settings.from_env({}, threads=1), min_batch=32)
    for rows, taken in ((31, "reference"), (32, "blas")):
        y = ops.mul_mat(weight("w", D, D), x(rows))
        z = ops.silu(y)
        placements = place(z, blas)
        assert (of(placements, y)[0], of(placements, z)[0]) == (taken, "reference")


@pytest.mark.parametrize(
    ("rows", "backend", "reason"),
    [
        (31, "reference", "weight w is on the host"),
        (32, "sim", "offloaded: batch 32 >= 32"),
    ],
)
def test_a_product_over_a_host_weight_is_offloaded_from_32_rows_on(rows, backend, reason):
    y = ops.mul_mat(weight("w", D, D), x(rows))
    placements = place(y)
    assert of(placements, y) == (backend, reason)
    if backend == "reference":
        assert placements.nodes[y].rejected == ("sim: not offloaded: batch 31 < 32",)


@pytest.mark.parametrize(
    ("tokens", "backend", "said"),
    [
        (127, "reference", "batch 127 x 0.25 of the experts < 32"),
        (128, "sim", "batch 128 x 0.25 of the experts >= 32"),
    ],
)
def test_experts_are_offloaded_at_the_batch_times_the_share_of_experts_used(tokens, backend, said):
    ids = graphrt.input("ids", (tokens, 2), "i32")
    y = ops.mul_mat_id(weight("ffn_up_exps", 8, D, D), graphrt.input("x", (tokens, 1, D)), ids)
    placements = place(y)
    assert of(placements, y)[0] == backend
    assert said in " ".join([placements.nodes[y].reason, *placements.nodes[y].rejected])


def test_the_threshold_is_a_setting_and_rows_that_are_only_read_are_never_offloaded():
    w = weight("w", D, D)
    y = ops.mul_mat(w, x(3))
    assert of(place(y, op_offload_min_batch=3), y)[0] == "sim"
    rows = ops.get_rows(w, graphrt.input("ids", (100,), "i32"))
    assert of(place(rows), rows)[0] == "reference"


def test_of_two_devices_the_first_that_can_takes_offloaded_work():
    y = ops.mul_mat(weight("w", D, D), x(32))
    assert of(place(y, SimBackend("sim0"), SimBackend("sim1")), y)[0] == "sim0"
    placements = place(y, SimBackend("sim0", missing={"mul_mat"}), SimBackend("sim1"))
    assert of(placements, y) == ("sim1", "offloaded: batch 32 >= 32")
    assert placements.nodes[y].rejected == ("sim0: sim0 has no kernel for mul_mat",)


def test_rules_of_one_phase_hold_in_it_only():
    w = weight("ffn_up_exps", D, D)
    y = ops.mul_mat(w, x())
    for phase, backend in (("prompt", "sim"), ("decode", "reference"), (None, "reference")):
        assert of(place(y, phase=phase, overrides=["exps@prompt=sim"]), y)[0] == backend


def test_the_first_rule_that_matches_wins_and_matches_are_counted():
    w = weight("blk.0.ffn_up_exps.weight", D, D)
    schedule = Scheduler([SimBackend(), "reference"], overrides=["up=sim", "exps=reference", "nothing=sim"]).schedule(
        Graph(ops.mul_mat(w, x()))
    )
    assert of(schedule.placements, w) == ("sim", 'override "up=sim"')
    assert [rule.matches for rule in schedule.rules] == [1, 0, 0]


def test_neighbours_stay_together_devices_first():
    w = weight("w", D, D)
    before = ops.relu(x())
    y = ops.mul_mat(w, before)
    after = ops.silu(y)
    placements = place(after, overrides=["w=sim"])
    assert of(placements, before) == of(placements, after) == ("sim", f"stays with its neighbour {y.name}")


def test_without_weights_nodes_run_on_the_host_where_their_sources_are():
    y = ops.silu(x())
    assert of(place(y), y) == ("reference", "its sources are on the host")


def test_without_a_backend_on_the_host_nothing_can_be_placed():
    with pytest.raises(SettingsError, match=r'no backend works on the host\'s memory; add "cpu"'):
        graphrt.placement.place(Graph(ops.silu(x())), [SimBackend()], Settings.from_env({}))
