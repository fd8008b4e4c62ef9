"""Products with few rows of x, in shapes that the op's cases seldom reach: long rows, ragged steps, ids and NaN."""

from __future__ import annotations

import numpy as np
import pytest

import graphrt
from graphrt import Graph, Scheduler, dtypes, ops
from graphrt.backends.cuda import CudaBackend, products_few
from graphrt.backends.cuda.shim_device import ShimDevice
from graphrt.numerics import normalised_error
from graphrt.tensor import Tensor
from graphrt.testing import random_blocks
from tests.backends.cuda.on_shim import agrees

NAMES = [dtype.name for dtype in dtypes.QUANTIZED]


def _values(shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _weight(dtype: str, shape, seed=0) -> Tensor:
    found = dtypes.get(dtype)
    generator = np.random.default_rng(seed)
    blocks = random_blocks(generator, shape, found) if found.is_quantized else _values(shape, seed).astype(found.numpy)
    return graphrt.weight("w", blocks)


def _run(node: Tensor, **device):
    backend = CudaBackend(ShimDevice(guarded=True, poisoned=True, checked=True, **device))
    assert backend.supports(node)
    plan = Scheduler([backend]).plan(Graph(node), assigned={node: backend.name})
    plan.execute()
    return plan.output().copy()


def _agrees(node: Tensor, **device) -> None:
    error = normalised_error(_run(node, **device), Scheduler(["reference"]).run(node))
    assert error <= node.op.tolerance_of(node), error


@pytest.mark.parametrize(("columns", "of_x"), [(1, "f32"), (1, "bf16"), (3, "f32"), (6, "f16")])
@pytest.mark.parametrize("dtype", NAMES)
def test_quantized_rows_of_several_steps(dtype: str, columns: int, of_x: str):
    """A last step with some lanes idle, a number of rows that fills no block, groups of columns that are not full.

    One column in float32 is made int8 by each block, others by a kernel before.
    """
    w, x = _weight(dtype, (19, 4096 + 768)), _values((columns, 4096 + 768)).astype(dtypes.get(of_x).numpy)
    node = ops.mul_mat(w, graphrt.constant("x", x))
    assert len(products_few.few(node).launches()) == (1 if (columns, of_x) == (1, "f32") else 2)
    _agrees(node)


@pytest.mark.parametrize("dtype", ["q4_0", "mxfp4", "q6_k", "f16"])
def test_warps_share_rows_where_there_are_few(dtype: str):
    w, x = _weight(dtype, (2, 14336)), graphrt.constant("x", _values((1, 14336)))
    node = ops.mul_mat(w, x)
    assert products_few.few(node).launches()[-1].grid[1] == 1
    _agrees(node, order=7)


@pytest.mark.parametrize(
    ("dtype", "width", "rows"), [("q4_0", 64, 64), ("q8_0", 128, 80), ("q6_k", 512, 36), ("mxfp4", 1024, 10)]
)
def test_short_rows_are_joined(dtype: str, width: int, rows: int):
    """Whole steps of them, in several matrices; rows that make no whole step are taken one by one."""
    for height in (rows, rows + 1):
        x = graphrt.constant("x", _values((3, 1, width)))
        _agrees(ops.mul_mat(_weight(dtype, (3, height, width)), x), order=7)
        _agrees(ops.mul_mat(_weight(dtype, (height, width)), x))


def test_rows_that_begin_anywhere():
    """Rows of 18-byte blocks, of a matrix that begins within another: each row at another place in its 16 bytes."""
    w = _weight("q4_0", (9, 32 * 67))[1:, 32:]
    _agrees(ops.mul_mat(w, graphrt.constant("x", _values((2, 32 * 66)))))


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("columns", [1, 5])
def test_floats_in_aligned_rows_with_a_tail(dtype: str, columns: int):
    w, x = _weight(dtype, (13, 2608))[:, :2603], graphrt.constant("x", _values((columns, 2608)))[:, :2603]
    assert "mmv_any" not in products_few.few(ops.mul_mat(w, x)).launches()[-1].kernel.expression
    _agrees(ops.mul_mat(w, x))


@pytest.mark.parametrize("dtype", ["f16", "q8_0"])
@pytest.mark.parametrize(("of_w", "of_x"), [((3, 1), (1, 2)), ((2,), (3, 1)), ((1, 1), (2, 3)), ((2, 3), ())])
def test_batches_repeat_both_ways(dtype: str, of_w, of_x):
    w, x = _weight(dtype, (*of_w, 5, 256)), graphrt.constant("x", _values((*of_x, 2, 256)))
    _agrees(ops.mul_mat(w, x))
    _agrees(ops.mul_mat_transposed(_weight(dtype, (*of_w, 70, 256)), graphrt.constant("x", _values((*of_x, 2, 70)))))


@pytest.mark.parametrize("dtype", ["q4_0", "q6_k", "bf16"])
@pytest.mark.parametrize("rows_of_token", [1, 3])
def test_experts_and_ids_that_are_none(dtype: str, rows_of_token: int):
    w, x = _weight(dtype, (4, 11, 2304)), _values((2, rows_of_token, 2304))
    ids = np.array([[3, 0, 1], [2, 3, 0]], np.int32)
    node = ops.mul_mat_id(w, graphrt.constant("x", x), graphrt.constant("ids", ids))
    _agrees(node)
    wrong = np.array([[3, 4, 1], [-1, 3, 0]], np.int32)
    y = _run(ops.mul_mat_id(w, graphrt.constant("x", x), graphrt.constant("ids", wrong)))
    expected = Scheduler(["reference"]).run(node)
    assert np.isnan(y[0, 1]).all()
    assert np.isnan(y[1, 0]).all()
    assert normalised_error(y[[0, 0, 1, 1], [0, 2, 1, 2]], expected[[0, 0, 1, 1], [0, 2, 1, 2]]) < 5e-4


@pytest.mark.parametrize("dtype", ["q4_0", "q8_0", "q4_k"])
@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so_in_its_row(dtype: str, strange: float):
    x = _values((3, 512))
    x[1, 40] = strange
    with np.errstate(invalid="ignore"):
        y = _run(ops.mul_mat(_weight(dtype, (6, 512)), graphrt.constant("x", x)))
    assert not np.isfinite(y[1]).any()
    assert np.isfinite(y[[0, 2]]).all()


def test_zeros_and_tiny_values_give_no_nan():
    x = _values((3, 512))
    x[0], x[1] = 0, x[1] * 1e-36
    y = _run(ops.mul_mat(_weight("q4_0", (6, 512)), graphrt.constant("x", x)))
    assert np.array_equal(y[0], np.zeros(6))
    assert np.abs(y[1]).max() < 1e-30


@pytest.mark.parametrize("dtype", ["q5_k", "f32"])
def test_products_over_nothing_are_zero(dtype: str):
    node = ops.mul_mat(_weight(dtype, (3, 0)), graphrt.constant("x", np.zeros((2, 0), np.float32)))
    assert np.array_equal(_run(node), np.zeros((2, 3)))


@pytest.mark.parametrize("dtype", ["q8_0", "f32", "f16"])
def test_rows_of_x_out_of_line(dtype: str):
    """Memory that a result takes over, and views of an input, begin where vectors of 16 bytes may not."""
    w, x = _weight(dtype, (64, 64)), graphrt.weight("x", _values((1, 65)))
    agrees(ops.mul_mat(w, ops.silu(ops.silu(x)[:, 1:])))
    given, values = graphrt.input("given", (1, 80)), _values((1, 80))
    graph = Graph([ops.silu(given[:, 1:33]), ops.mul_mat(w, given[:, 4:68])])
    backend = CudaBackend(ShimDevice(guarded=True, poisoned=True, checked=True))
    _, got = Scheduler([backend, "reference"], node_overrides=[".=cuda"]).plan(graph).run(given=values)
    _, expected = Scheduler(["reference"]).plan(graph).run(given=values)
    assert normalised_error(got, expected) <= graph.nodes[-1].op.tolerance_of(graph.nodes[-1])
