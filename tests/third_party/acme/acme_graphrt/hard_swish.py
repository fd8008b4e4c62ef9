"""acme.hard_swish: what it computes, and its kernel for the CPU."""

import numpy as np

import graphrt
from graphrt import dtypes
from graphrt.backends import cpu
from graphrt.backends.cpu.args import row_address, rows, share, size
from graphrt.backends.cpu.memory import load_f32_first, store_f32_first
from graphrt.backends.cpu.simd import select
from graphrt.backends.cpu.vector_math import like

ZERO, HALF, ONE, SIXTH = (np.float32(value) for value in (0, 0.5, 1, 1 / 6))


@graphrt.op(name="acme.hard_swish", inplace=["x"], layout={"x": "rows"})
def hard_swish(x: graphrt.Tensor) -> graphrt.Meta:
    """Let positive values pass, softly: y = x · min(max(x / 6 + 1/2, 0), 1).

    Args:    x [..., D] f32|f16|bf16, dense rows
    Returns: [..., D] in x's dtype
    Source:  Howard et al. 2019, arXiv:1905.02244
    """
    return graphrt.Meta(x.dtype, x.shape)


@hard_swish.reference
def _(x):
    wide = x.astype(np.float32)
    return (wide * np.clip(wide / 6 + 0.5, 0, 1)).astype(x.dtype)


@hard_swish.cases
def _(draw):
    return hard_swish(draw.tensor(draw.shape(), low=-5, high=5, layout="rows"))


@cpu.kernel(hard_swish, takes=cpu.floats)
def hard_swish_kernel(lanes, out, x):
    width = dtypes.get(out).nbytes

    def run(args, ith, nth):
        n = size(args, 0, 3)
        first, last = share(rows(args, 0), ith, nth)
        for row in range(first, last):
            source, target = row_address(args, 1, row), row_address(args, 0, row)
            for i in range(0, n, lanes):
                v = load_f32_first(source + i * width, x, lanes, n - i)
                gate = v * SIXTH + HALF
                gate = select(gate < ZERO, like(gate, ZERO), gate)
                gate = select(gate > ONE, like(gate, ONE), gate)
                store_f32_first(target + i * width, out, v * gate, n - i)

    return run
