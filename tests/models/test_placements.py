"""Models write the same greedy tokens wherever their weights, caches and nodes are placed."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import graphrt
from graphrt.backends.blas import BlasBackend
from graphrt.backends.sim import SimBackend
from graphrt.models.synth import synthesise
from graphrt.overrides import cpu_moe, n_cpu_moe

TOKENS = 4
SYNTHESISED = "mixtral of 2 layers"
MODELS = ("tiny-mixtral", "tiny-deepseek2", SYNTHESISED)
# In every layer of every model: weights of attention, router, experts; caches; ops.
WEIGHTS = ("attn_q", "attn_k", "attn_v", "attn_output", "attn_norm", "ffn_norm", "gate_inp", "exps", "cache_", "output")
OPS = ("^rms_norm$", "^rope$", "^attention$", "^swiglu$", "^top_k$", "^set_rows$", "^soft_max$", "^add$", "^get_rows$")


@dataclass(frozen=True)
class Place:
    """Keywords of graphrt.load; backends are made anew for each model, and "cpu" is the last of them."""

    devices: Callable[[], list[Any]] = list
    options: dict[str, Any] = field(default_factory=dict)

    def load(self, path: str | Path, **others: Any) -> graphrt.Model:
        return graphrt.load(path, backends=[*self.devices(), "cpu"], threads=1, n_ctx=128, **self.options, **others)


def sim() -> list[SimBackend]:
    return [SimBackend()]


def two() -> list[SimBackend]:
    return [SimBackend("sim0"), SimBackend("sim1")]


def asynchronous() -> list[SimBackend]:
    """Two devices that work while the host goes on."""
    return [SimBackend("sim0", asynchronous=True), SimBackend("sim1", asynchronous=True)]


def lacking() -> list[SimBackend]:
    """A device without attention and without rows."""
    return [SimBackend(missing=["attention", "get_rows"])]


def drawn(seed: int) -> Place:
    """Random rules for weights, caches and nodes over two devices, the CPU and the references, and a threshold."""
    pick = random.Random(seed)
    names = ("sim0", "sim1", "cpu", "reference")
    rules = [f"{pick.choice(WEIGHTS)}={pick.choice(names)}" for _ in range(4)]
    rules += [rf"blk\.{layer}\.={pick.choice(names)}" for layer in range(2)]
    rules += [f"{pick.choice(WEIGHTS)}@{phase}={pick.choice(names)}" for phase in ("prompt", "decode")]
    pick.shuffle(rules)
    nodes = [f"{op}={pick.choice(names)}" for op in pick.sample(OPS, 3)]
    threshold = pick.choice([1, 4, 32])
    return Place(two, {"overrides": rules, "node_overrides": nodes, "op_offload_min_batch": threshold})


EVERYTHING = [r"^blk\.=sim", "^cache_=sim", "^output=sim", "^token_embd=sim"]
PLACES = {
    "references": Place(lambda: ["reference"]),
    "blas, whatever the batch": Place(lambda: [BlasBackend(min_batch=1)]),
    "a device that nothing is placed on": Place(sim),
    "a device that is offloaded to": Place(sim, {"op_offload_min_batch": 2}),
    "-ngl 0": Place(sim, {"gpu_layers": 0}),
    "-ngl 1": Place(sim, {"gpu_layers": 1}),
    "-ngl 2": Place(sim, {"gpu_layers": 2}),
    "-ngl 99": Place(sim, {"gpu_layers": 99}),
    "everything on a device": Place(sim, {"overrides": EVERYTHING}),
    "experts on the CPU": Place(sim, {"gpu_layers": 99, "overrides": [cpu_moe()]}),
    "experts on the CPU, offloaded": Place(
        sim, {"gpu_layers": 99, "overrides": [cpu_moe()], "op_offload_min_batch": 1}
    ),
    "experts of one layer on the CPU": Place(sim, {"gpu_layers": 99, "overrides": [n_cpu_moe(1)]}),
    "layers on two devices": Place(two, {"overrides": [r"^blk\.0\.=sim0", r"^blk\.=sim1", "^cache_.*-0$=sim0"]}),
    "layers on two asynchronous devices": Place(
        asynchronous, {"overrides": [r"^blk\.0\.=sim0", r"^blk\.=sim1", "^cache_.*-0$=sim0", "^cache_=sim1"]}
    ),
    "experts on the CPU, offloaded to an asynchronous device": Place(
        asynchronous, {"gpu_layers": 99, "overrides": [cpu_moe()], "op_offload_min_batch": 1}
    ),
    "caches on a device, weights on the CPU": Place(sim, {"overrides": ["^cache_=sim"]}),
    "a device without attention": Place(lacking, {"gpu_layers": 99}),
    "experts on a device in prompts": Place(sim, {"overrides": ["exps@prompt=sim", "attn@decode=sim"]}),
    "nodes on a device": Place(sim, {"node_overrides": ["^rms_norm$=sim", "^kqv-1$=sim", "^ffn_moe_topk=reference"]}),
    **{f"random rules {seed}": drawn(seed) for seed in range(4)},
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str | Path]:
    """The file of a model, or the name under which the package has it."""
    file = tmp_path_factory.mktemp("models") / "mixtral.gguf"
    synthesise("tiny-mixtral", file, layers=2, seed=1)
    return lambda name: file if name == SYNTHESISED else name


def greedy(model: graphrt.Model) -> list[int]:
    generation = model.generate(list(range(40, 47)), max_tokens=TOKENS, temperature=0)
    list(generation)
    return generation.tokens


@pytest.fixture(scope="module")
def expected(path: Callable[[str], str | Path]) -> dict[str, list[int]]:
    """What each model writes on the CPU alone."""
    return {name: greedy(Place().load(path(name))) for name in MODELS}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", MODELS)
def test_tokens_do_not_depend_on_the_placement(
    name: str, place: str, path: Callable[[str], str | Path], expected: dict[str, list[int]]
) -> None:
    assert len(expected[name]) == TOKENS
    assert greedy(PLACES[place].load(path(name))) == expected[name]


def test_a_weight_may_lie_on_the_device_in_one_phase_and_on_the_host_in_the_other() -> None:
    context = PLACES["experts on a device in prompts"].load("tiny-mixtral").new_context()
    homes = {}
    for phase, tokens in (("prompt", 3), ("decode", 1)):
        schedule = context.scheduler.schedule(context.graph(tokens, 1, 128))
        homes[phase] = {
            leaf.name: home.backend.name for leaf, home in schedule.placements.homes.items() if ".0." in leaf.name
        }
    experts, attention = "blk.0.ffn_up_exps.weight", "blk.0.attn_q.weight"
    assert (homes["prompt"][experts], homes["decode"][experts]) == ("sim", "cpu")
    assert (homes["prompt"][attention], homes["decode"][attention]) == ("cpu", "sim")


def test_a_rule_for_one_phase_does_not_move_a_cache() -> None:
    context = Place(sim, {"overrides": [".*@decode=sim"]}).load("tiny-mixtral").new_context()
    schedule = context.scheduler.schedule(context.graph(1, 1, 128))
    homes = {leaf.role: home.backend.name for leaf, home in schedule.placements.homes.items()}
    assert homes == {"weight": "sim", "state": "cpu"}


def test_contexts_share_the_weights_on_a_device_and_give_back_their_caches() -> None:
    device = SimBackend()
    model = graphrt.load("tiny-mixtral", backends=[device, "cpu"], overrides=EVERYTHING, threads=1, n_ctx=128)
    used = []
    for _ in range(2):
        context = model.new_context()
        context.plan(1, 1, 128)
        used.append(device.used)
        del context
        gc.collect()
    weights = sum(tensor.nbytes for tensor in model.file.tensors.values())
    assert weights < used[0] < 1.2 * weights
    assert used[1] == used[0]
