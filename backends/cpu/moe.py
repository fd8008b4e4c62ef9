"""mul_mat_id: a product whose columns are grouped by expert; and weighted_sum, which has a file of its own."""

from __future__ import annotations

from graphrt.backends.cpu import weighted_sum
from graphrt.backends.cpu.matmul import product_calls, workspace
from graphrt.backends.cpu.registry import lowering
from graphrt.ops.moe import mul_mat_id

__all__ = ["weighted_sum"]


lowering(mul_mat_id, workspace=workspace)(product_calls)
