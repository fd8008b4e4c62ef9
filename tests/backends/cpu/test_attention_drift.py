"""200 shifts by one position: keys turned and stored again at each drift away, keys that attention turns do not.

N cells, D width of a key.
"""

import numpy as np
import pytest

import graphrt
from graphrt import dtypes, ops
from graphrt.ops.rope import Rotation, turned

CELLS, WIDTH, STEPS = 128, 128, 200
CELL = np.arange(CELLS, dtype=np.int32)
ROTATION = Rotation(base=5e5)
PLAIN = np.random.default_rng(0).standard_normal((CELLS, 1, WIDTH))
START = 1000  # the position of cell 0 when the keys were stored
WANTED = turned(PLAIN, START - STEPS + CELL, None, ROTATION)[:, 0]  # [N, D]: what the keys are after all shifts


def stored(dtype):
    """A cache of roped keys [N, 1, D]."""
    cache = graphrt.state("cache", (CELLS, 1, WIDTH), dtype)
    cache.data[...] = dtypes.from_f32(turned(PLAIN, START + CELL, None, ROTATION), dtypes.get(dtype))
    return cache


def shift_in_place(dtype, shift, steps):
    """The keys [N, D] after a K-shift: the cache is read, turned and written back, so many times."""
    cache = stored(dtype)
    keys = ops.rope(ops.cast(cache, dtype="f32"), graphrt.input("shift", (CELLS,), "i32"), **vars(ROTATION))
    plan = graphrt.Scheduler(["cpu"]).plan(graphrt.Graph([ops.cpy(cache, keys)]))
    for _ in range(steps):
        plan.run({"shift": np.full(CELLS, shift, np.int32)})
    return dtypes.to_f32(cache.data)[:, 0]


def shift_in_attention(dtype, shift, steps):
    """The keys [N, D] as attention sees them after the cells' rotations changed so many times.

    Query n sees cell n alone, its heads are the unit vectors and its sink is 0: it gives 1 / (1 + e to the -element).
    """
    y = ops.attention(
        graphrt.constant("q", np.tile(np.eye(WIDTH, dtype=np.float32), (CELLS, 1, 1))),
        stored(dtype),
        graphrt.constant("v", np.ones((CELLS, 1, 1), np.float32)),
        graphrt.constant("q_pos", CELL),
        graphrt.constant("q_seq", np.zeros(CELLS, np.int32)),
        graphrt.constant("cell_pos", CELL),
        graphrt.constant("cell_seq", np.ones(CELLS, np.int64)),
        graphrt.constant("sinks", np.zeros(WIDTH, np.float32)),
        graphrt.input("cell_rotation", (CELLS,), "i32"),
        scale=1.0,
        window=1,
        rope=ROTATION,
    )
    plan, rotations = graphrt.Scheduler(["cpu"]).plan(graphrt.Graph([y])), np.zeros(CELLS, np.int32)
    for _ in range(steps):
        rotations += shift
        (share,) = plan.run({"cell_rotation": rotations})
    share = share[..., 0].astype(np.float64)
    return np.log(share / (1 - share))


def worst(keys):
    return np.abs(keys - WANTED).max()


@pytest.mark.parametrize(("dtype", "least_drift", "rounding"), [("f16", 0.1, 0.002), ("q8_0", 1.5, 0.02)])
def test_rotations_do_not_drift(dtype, least_drift, rounding):
    step_by_step = shift_in_attention(dtype, -1, STEPS)
    np.testing.assert_array_equal(step_by_step, shift_in_attention(dtype, -STEPS, 1))
    assert worst(step_by_step) < rounding  # that of storing the keys once
    assert worst(shift_in_place(dtype, -STEPS, 1)) < 2 * rounding  # stored once more
    assert worst(shift_in_place(dtype, -1, STEPS)) > least_drift
