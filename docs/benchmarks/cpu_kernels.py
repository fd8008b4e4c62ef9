"""Every kernel alone, beside the machine's limits of the same seconds: products by type, and attention."""

from __future__ import annotations

from typing import Any

from docs.benchmarks.cpu_limits import BANDWIDTH, Limits
from docs.benchmarks.cpu_models import kind_of
from graphrt import dtypes
from graphrt.backends.cpu import bench, bench_ops

COLUMNS = 512
TYPES = (*dtypes.FLOATS, *dtypes.QUANTIZED)
DECODE_CELLS, PROMPT_CELLS = 16384, 2048
MOST_PAIRS = 2e11  # of multiplied numbers: longer attention is left out


def kernels(limits: Limits) -> dict[str, Any]:
    """Products with one column and with many, and attention of one token and of many."""
    return {"products": {dtype.name: _product(dtype, limits) for dtype in TYPES}, "attention": _attention(limits)}


def _product(dtype: dtypes.DType, limits: Limits) -> dict[str, Any]:
    before = limits.measure([BANDWIDTH, kind_of(dtype)])
    decode, nbytes = bench.product_seconds(dtype.name, 1, limits.size)
    prompt, _ = bench.product_seconds(dtype.name, COLUMNS, limits.size)
    after = limits.measure(before)
    limit = {kind: max(before[kind], after[kind]) for kind in before}
    operations = 2 * COLUMNS * bench.ROWS * bench.WIDTH / prompt
    found = {
        "decode": {"rate": nbytes / decode, "share": nbytes / decode / limit[BANDWIDTH]},
        "prompt": {"rate": operations, "share": operations / limit[kind_of(dtype)], "kind": kind_of(dtype)},
    }
    shares = ", ".join(f"{name} {each['share']:.1%}" for name, each in found.items())
    print(f"{dtype.name:8} {shares}", flush=True)
    return found


def _attention(limits: Limits) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, (heads, kv_heads, widths) in bench_ops.ATTENTION.items():
        for dtype in ("f16", "q8_0"):
            for phase, tokens, cells in (("decode", 1, DECODE_CELLS), ("prompt", COLUMNS, PROMPT_CELLS)):
                if tokens * heads * cells * sum(widths) <= MOST_PAIRS:
                    node = bench_ops.attention(tokens, heads, kv_heads, cells, widths, dtype)
                    found.setdefault(f"{name}, {dtype}", {})[phase] = _rate(node, phase, limits, (tokens, cells))
    return found


def _rate(node: Any, phase: str, limits: Limits, size: tuple[int, int]) -> dict[str, Any]:
    """Bytes a second of a decoded token, else operations a second, of which the hidden cells' do not count."""
    kind = BANDWIDTH if phase == "decode" else "f32"
    limit = limits.measure([kind])[kind]
    seconds = bench_ops.seconds_of(node, limits.size)
    cost, (tokens, cells) = node.op.cost_of(node), size
    amount = cost.nbytes if phase == "decode" else cost.flops * (1 - (tokens - 1) / 2 / cells)
    return {"rate": amount / seconds, "share": amount / seconds / limit, "kind": kind}
