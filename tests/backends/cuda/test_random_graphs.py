"""Random graphs with all that the device can run there give the result of the ops' references: through the shim.

More of them: GRAPHRT_RANDOM_GRAPHS=2000 pytest tests/backends/cuda/test_random_graphs.py, a minute on two cores.
"""

from __future__ import annotations

import os
import random

import pytest

from graphrt import Scheduler
from graphrt.backends.cuda import CudaBackend
from graphrt.backends.cuda.shim_device import ShimDevice
from graphrt.explain import describe
from graphrt.testing import Draw
from tests.core.oracle import Oracle, difference, tolerance
from tests.core.random_graphs import random_graph
from tests.core.test_random_graphs import run

GRAPHS = int(os.environ.get("GRAPHRT_RANDOM_GRAPHS", "40"))


def agrees_with_the_oracle(backend: CudaBackend, seed: int) -> None:
    """A graph's outputs in two runs on the device, and what they should be."""
    case = random_graph(Draw(random.Random(seed).randint))
    oracle = Oracle(case.graph, case.inputs)
    plan = Scheduler([backend, "reference"], node_overrides=[f".={backend.name}"]).plan(case.graph)
    for got in run(plan, case):
        expected = oracle.run()
        for output, want, have, coarse in zip(case.graph.outputs, expected, got, case.coarse, strict=True):
            error = difference(have, want)
            assert error <= tolerance(coarse), (
                f"{output!r}: error {error:.2e}\n{have}\n{want}\n{describe(plan.schedule)}"
            )


@pytest.mark.parametrize("seed", range(GRAPHS))
def test_any_graph_gives_the_reference_result(seed: int):
    agrees_with_the_oracle(CudaBackend(ShimDevice(order=7, guarded=True, poisoned=True, checked=True)), seed)
