"""Attention to latents for many rows on tensor cores of compute capability 9.0: every cache, ragged tiles, parts."""

from __future__ import annotations

import numpy as np
import pytest

from graphrt import Tensor, ops
from graphrt.backends.cuda import CudaBackend, registry
from graphrt.backends.cuda.hardware import Hardware, made_for
from graphrt.backends.cuda.launch import Launch
from graphrt.backends.cuda.shim_device import ShimDevice
from graphrt.numerics import normalised_error
from tests.backends.cuda.on_shim import drawn, leaf, on_reference, results
from tests.backends.cuda.test_attention import latent_attention, where

ORDERS = (0, 1, 7)
FEW, MANY = (Hardware(processors=count, has_wgmma=True) for count in (1, 8))


def launches(node: Tensor, hardware: Hardware = FEW) -> list[Launch]:
    record = registry.find(ops.attention)
    assert record is not None
    with made_for(hardware):
        return list(record.lower(node))


def kernel_of(node: Tensor, hardware: Hardware = FEW) -> str:
    """What attends."""
    found = (launch.kernel.expression for launch in launches(node, hardware))
    return next(kernel for kernel in found if kernel.startswith("attend"))


def agrees(node: Tensor, order: int = 7, hardware: Hardware = FEW) -> bool:
    """Whether the kernel serves the node, and gives the reference's result."""
    assert kernel_of(node, hardware).startswith("attend_wgmma")
    backend = CudaBackend(ShimDevice(order=order, guarded=True, poisoned=True, checked=True, hardware=hardware))
    (got,), (expected,) = results(backend, [node]), on_reference(node)
    return normalised_error(got, expected) <= node.op.tolerance_of(node)


def test_few_rows_narrow_ones_and_other_devices_keep_to_mma():
    many = latent_attention(1, 128, 100, "f16")
    assert kernel_of(many) == "attend_wgmma<f16>"
    assert kernel_of(latent_attention(1, 128, 100, "bf16")) == "attend_wgmma<bf16>"
    assert kernel_of(many, Hardware()).startswith("attend_tiles<f16, 576, 512, true, 4")
    assert kernel_of(latent_attention(1, 16, 100, "f16")).startswith("attend_tiles<f16, 576, 512, true, 1")
    assert kernel_of(latent_attention(1, 128, 100, "f32")) == "attend_rows"
    latent = drawn(100, 1, 128, dtype="f16")
    narrow = ops.attention(drawn(1, 64, 128), latent, latent[..., :96], *where(1, 100), scale=0.1)
    assert kernel_of(narrow).startswith("attend_tiles<f16, 128")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("tokens", "heads", "cells"), [(1, 128, 70), (3, 33, 300), (130, 1, 150)])
def test_ragged_blocks_and_tiles(tokens: int, heads: int, cells: int, order: int):
    assert agrees(latent_attention(tokens, heads, cells, "f16"), order)


@pytest.mark.parametrize("dtype", ["bf16", "q8_0", "q4_0"])
def test_caches_of_other_dtypes(dtype: str):
    assert agrees(latent_attention(2, 40, 140, dtype))


def test_parts_of_the_cells():
    node = latent_attention(1, 64, 700, "f16")
    assert launches(node, MANY)[-1].kernel.expression == "combine_parts"
    assert agrees(node, hardware=MANY)


@pytest.mark.parametrize(("key", "value"), [(576, 500), (264, 260), (200, 8), (576, 512)])
def test_rows_of_other_widths_at_any_address(key: int, value: int):
    """Rows that do not begin at multiples of 16 bytes cannot be copied as they are."""
    cache = drawn(90, 1, key + 3, dtype="f16", seed=1)
    latent = cache[..., 1 : key + 1] if value == 500 else cache[..., :key]
    assert agrees(ops.attention(drawn(1, 40, key), latent, latent[..., :value], *where(1, 90), scale=0.1))


@pytest.mark.parametrize("order", ORDERS)
def test_sequences_a_window_a_cap_and_sinks(order: int):
    latent = drawn(400, 1, 576, dtype="f16", seed=1)
    options = {"sinks": drawn(20), "window": 100, "softcap": 20.0, "scale": 0.05}
    node = ops.attention(drawn(9, 20, 576), latent, latent[..., :512], *where(9, 400, 3), **options)
    assert agrees(node, order)


def test_what_nobody_sees_does_not_matter_and_nan_stays_with_its_query():
    q, latent, _, q_pos, q_seq, cell_pos, cell_seq = latent_attention(4, 20, 150, "f16").srcs[:7]
    cell_pos.data[[5, 70, 149]] = -1, 500, -1
    latent.data[[5, 70, 149], 0] = [[np.nan], [np.inf], [np.nan]]
    q.data[1, 3, 7] = np.nan
    node = ops.attention(q, latent, latent[..., :512], q_pos, q_seq, cell_pos, cell_seq, scale=0.05)
    device = ShimDevice(poisoned=True, hardware=FEW)
    (got,) = results(CudaBackend(device), [node])
    expected = np.zeros((4, 20), bool)
    expected[1, 3] = True
    np.testing.assert_array_equal(np.isnan(got).any(axis=-1), expected)
    np.testing.assert_array_equal(np.isnan(got).all(axis=-1), expected)


def test_a_token_that_sees_nothing_gets_zeros():
    q, latent, _, _, *others = latent_attention(2, 33, 100, "f16").srcs[:7]
    node = ops.attention(q, latent, latent[..., :512], leaf([-1, 99], "i32"), *others, scale=0.05)
    device = ShimDevice(poisoned=True, hardware=FEW)
    (got,) = results(CudaBackend(device), [node])
    assert not got[0].any()
    assert got[1].any()


def test_queries_past_the_range_of_f16():
    q, *others = latent_attention(1, 64, 40, "f16").srcs[:7]
    assert agrees(ops.attention(leaf(q.data * 1e6), *others, scale=1e-7))


@pytest.mark.parametrize("order", range(2, 8))
def test_orders_of_threads_do_not_matter(order: int):
    node = latent_attention(2, 64, 330, "f16")
    found = []
    for each in (0, order):
        device = ShimDevice(order=each, poisoned=True, hardware=FEW)
        found += results(CudaBackend(device), [node])
    np.testing.assert_array_equal(*found)
