"""Every op's kernels on the CPU, through the shim: against the reference, in three orders of the threads.

Buffers end at pages that nobody may touch, new memory is NaN, and the undefined-behaviour sanitizer watches: what it
finds, and reads past a buffer, end the process, which pytest-xdist tells as a crashed worker.
"""

from __future__ import annotations

import pytest

from graphrt import Op, ops
from graphrt.backends.cuda import CudaBackend, registry
from graphrt.backends.cuda.shim_device import ShimDevice
from graphrt.testing import check

ALL = [op for op in (getattr(ops, name) for name in ops.__all__) if op.kind != "view"]


@pytest.mark.parametrize("op", ALL, ids=lambda op: op.name)
def test_every_op_has_kernels(op: Op):
    assert registry.find(op) is not None


@pytest.mark.parametrize("order", [0, 1, 7], ids=["ascending", "descending", "shuffled"])
@pytest.mark.parametrize("op", [op for op in ALL if registry.find(op)], ids=lambda op: op.name)
def test_kernels_agree_with_the_reference(op: Op, order: int):
    device = ShimDevice(order=order, guarded=True, poisoned=True, checked=True)
    report = check(op, backends=[CudaBackend(device)], examples=25)
    assert report.ran["cuda"] > 0, f"all cases were refused: {report.refused['cuda']}"
