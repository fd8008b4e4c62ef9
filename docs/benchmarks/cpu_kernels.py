"""Every kernel alone, beside the machine's limits of the same seconds: products by type, and attention."""

from __future__ import annotations

from typing import Any

from docs.benchmarks.cpu_limits import BANDWIDTH, Limits
from docs.benchmarks.model_work import kind_of
from graphrt import dtypes
from graphrt.backends.cpu import bench, bench_attention
from graphrt.tensor import Tensor

COLUMNS = 512
TYPES = (*dtypes.FLOATS, *dtypes.QUANTIZED, *dtypes.INTERLEAVED.values())
DECODE_CELLS, PROMPT_CELLS = 16384, 2048
CACHES = ("f16", "q8_0")
PAIRS = "bf16"  # the limit of prompts' attention, which multiplies numbers of 16 bits in pairs


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
    print(f"{dtype.name:10} {shares}", flush=True)
    return found


def _attention(limits: Limits) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, form in bench_attention.FORMS.items():
        for dtype in CACHES:
            each = found.setdefault(f"{name}, {dtype}", {})
            if isinstance(form, bench_attention.Heads):
                each["decode"] = _reading(form.node(1, DECODE_CELLS, dtype), limits)
            node = form.node(COLUMNS, PROMPT_CELLS, dtype)
            each["prompt"] = _rate(node, form.operations(COLUMNS, PROMPT_CELLS), PAIRS, limits)
    return found


def _reading(node: Tensor, limits: Limits) -> dict[str, float]:
    """Bytes of the cache a second; values that lie in the keys count once."""
    caches = {id(source.root): source.root.nbytes for source in node.srcs[1:3] if source is not None}
    return _rate(node, sum(caches.values()), BANDWIDTH, limits)


def _rate(node: Tensor, amount: float, kind: str, limits: Limits) -> dict[str, float]:
    limit = limits.measure([kind])[kind]
    rate = amount / bench_attention.seconds_of(node, limits.size)
    return {"rate": rate, "share": rate / limit}
