import numpy as np
import pytest

from graphrt import GraphError, ops
from tests.ops.evaluate import close, drawn, leaf, refuses, run, values

IDS = [[2, 0], [1, 1], [0, 2]]


@pytest.mark.parametrize("dtype", ["f32", "f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("shared", [True, False])
def test_each_token_meets_its_experts(dtype, shared):
    w, x = drawn(3, 4, 32, dtype=dtype), drawn(3, 1 if shared else 2, 32, seed=1)
    rows = np.broadcast_to(values(x), (3, 2, 32))
    expected = [[values(w)[expert] @ rows[t, u] for u, expert in enumerate(chosen)] for t, chosen in enumerate(IDS)]
    close(run(ops.mul_mat_id(w, x, leaf(IDS, "i32"))), expected, 1e-5)


def test_one_expert_is_a_plain_product():
    w, x = drawn(1, 4, 5), drawn(6, 1, 5, seed=1)
    got = run(ops.mul_mat_id(w, x, leaf(np.zeros((6, 1)), "i32")))
    close(got[:, 0], run(ops.mul_mat(w[0], x.reshape(6, 5))), 1e-5)


def test_no_tokens():
    assert run(ops.mul_mat_id(drawn(3, 4, 5), drawn(0, 1, 5), leaf(np.zeros((0, 2)), "i32"))).shape == (0, 2, 4)


@pytest.mark.parametrize("wrong", [3, -1])
def test_ids_outside_are_refused_at_run_time(wrong):
    with pytest.raises(GraphError, match=r"\[mul_mat_id\] ids reach from .* there are rows 0 to 2"):
        run(ops.mul_mat_id(drawn(3, 4, 5), drawn(1, 1, 5), leaf([[wrong, 0]], "i32")))


def test_cost_reads_only_experts_in_use():
    node = ops.mul_mat_id(drawn(64, 4, 32, dtype="q8_0"), drawn(3, 1, 32), leaf(IDS, "i32"))
    cost = ops.mul_mat_id.cost_of(node)
    assert cost.flops == 2 * 6 * 4 * 32
    assert cost.nbytes == 6 * 4 * 34 + 3 * 32 * 4 + 6 * 4 + 6 * 4 * 4
    assert cost.batch == 3


def test_mul_mat_id_refusals():
    w, x, ids = drawn(3, 4, 5), drawn(3, 2, 5), leaf(IDS, "i32")
    refuses(r"\[mul_mat_id\] needs w \[E, M, K\]", lambda: ops.mul_mat_id(w[0], x, ids))
    refuses(r"\[mul_mat_id\] x f32 \[3, 2, 4\] must be .* K = 5", lambda: ops.mul_mat_id(w, drawn(3, 2, 4), ids))
    refuses(
        r"\[mul_mat_id\] x f32 \[3, 3, 5\] must be .*\[T, U\] = \[3, 2\]",
        lambda: ops.mul_mat_id(w, drawn(3, 3, 5), ids),
    )
    refuses(r"\[mul_mat_id\] ids must be one of i32, got i64", lambda: ops.mul_mat_id(w, x, leaf(IDS, "i64")))


@pytest.mark.parametrize("trailing", [True, False])
def test_weighted_sum(trailing):
    x, weights = drawn(3, 2, 4), drawn(3, 2, seed=1)
    got = run(ops.weighted_sum(x, weights.reshape(3, 2, 1) if trailing else weights))
    close(got, np.einsum("tud,tu->td", values(x), values(weights)))


def test_weighted_sum_adds_in_rank_order():
    x = leaf([[[1e8], [-1e8], [1.0]], [[1.0], [1e8], [-1e8]]])
    np.testing.assert_array_equal(run(ops.weighted_sum(x, leaf(np.ones((2, 3))))), [[1], [0]])


def test_weighted_sum_refusals():
    refuses(r"\[weighted_sum\] needs x \[T, U, D\] and weights", lambda: ops.weighted_sum(drawn(3, 2, 4), drawn(2, 3)))
