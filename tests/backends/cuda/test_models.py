"""Models write the CPU's greedy tokens on a CUDA device, wholly or in part: through the shim."""

from __future__ import annotations

from typing import Any

import pytest

import graphrt
from graphrt.backends.cuda import CudaBackend
from graphrt.backends.cuda.shim_device import ShimDevice

MODELS = ("tiny-mixtral", "tiny-deepseek2")
PLACES: dict[str, dict[str, Any]] = {
    "everything on the device": {"gpu_layers": 99},
    "experts on the CPU": {"gpu_layers": 99, "overrides": ["exps=cpu"]},
    "experts on the CPU, offloaded": {"gpu_layers": 99, "overrides": ["exps=cpu"], "op_offload_min_batch": 1},
    "one layer on the device": {"gpu_layers": 1},
}


def load(name: str, backend: CudaBackend, options: dict[str, Any]) -> graphrt.Model:
    return graphrt.load(name, backends=[backend, "cpu"], n_ctx=128, threads=1, **options)


def greedy(model: graphrt.Model, count: int) -> list[int]:
    """The tokens that follow a few others, the most probable at each step."""
    generation = model.generate(list(range(40, 47)), max_tokens=count, temperature=0)
    list(generation)
    return generation.tokens


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", MODELS)
def test_models_write_the_cpus_tokens(name: str, place: str):
    expected = greedy(graphrt.load(name, n_ctx=128, threads=1), 3)
    assert greedy(load(name, CudaBackend(ShimDevice(checked=True)), PLACES[place]), 3) == expected


@pytest.mark.parametrize("name", MODELS)
def test_nothing_runs_on_the_host_unless_told(name: str):
    context = load(name, CudaBackend(ShimDevice(checked=True)), PLACES["everything on the device"]).new_context()
    for tokens in (1, 5):
        explained = context.scheduler.schedule(context.graph(tokens, 1, 128)).explain()
        elsewhere = {
            node.result.name: node.reason for part in explained.splits for node in part.nodes if node.backend != "cuda"
        }
        assert set(elsewhere) <= {"inp_embd"}, elsewhere
