"""Kernels whose output takes over a source's memory: the result is that of separate memory, on several threads."""

import numpy as np
import pytest

import graphrt
from graphrt import dtypes, ops
from graphrt.testing import normalised_error

T, H, D = 5, 6, 1500  # a row is longer than a piece of one thread's work


def values(name, *shape):
    return graphrt.constant(name, np.random.default_rng(len(name)).standard_normal(shape).astype(np.float32))


POSITIONS = graphrt.constant("positions", np.arange(T, dtype=np.int32) * 1000)
IDS = graphrt.constant("ids", np.arange(T * H, dtype=np.int32).reshape(T, H) % 4)

CASES = {
    "add to the first": lambda x: ops.add(x, values("row", D)),
    "add to the second": lambda x: ops.add(values("other", T, H, D), x),
    "sub from itself": lambda x: ops.sub(x, x),
    "div by one of a row": lambda x: ops.div(x, values("one", T, H, 1)),
    "scale": lambda x: ops.scale(x, factor=2.0, bias=1.0),
    "clamp": lambda x: ops.clamp(x, min=-0.5, max=0.5),
    "silu": ops.silu,
    "swiglu by gate": lambda x: ops.swiglu(x, values("up", T, H, D)),
    "swiglu by up": lambda x: ops.swiglu(values("gate", T, H, D), x),
    "rms_norm": lambda x: ops.rms_norm(x, values("weight", D)),
    "soft_max": lambda x: ops.soft_max(x, values("mask", H, D)),
    "rope of neighbours": lambda x: ops.rope(x, POSITIONS, first=300, dims=1000),
    "rope of halves": lambda x: ops.rope(x, POSITIONS, mode="neox", first=50, dims=1400),
    "add_id": lambda x: ops.add_id(x, values("bias", 4, D), IDS),
}


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("case", CASES)
def test_result_in_place_of_a_source_is_the_same(case, dtype):
    x = graphrt.constant("x", np.random.default_rng(0).standard_normal((T, H, D)).astype(dtypes.get(dtype).numpy))
    node = CASES[case](ops.dup(x))
    graph = graphrt.Graph([node])
    plan = graphrt.Scheduler(["cpu"], threads=3).plan(graph)
    if dtype == "f32" or case not in ("add to the second", "swiglu by up"):  # those are f32, twice the donor's size
        assert node in plan.schedule.memory.inplace
    (want,) = graphrt.Scheduler(["reference"]).plan(graph).run()
    assert normalised_error(plan.run()[0], want) <= (1e-7 if dtype == "f32" else 1e-6)
