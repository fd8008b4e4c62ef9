import numpy as np
import pytest

import graphrt
from graphrt import Graph, GraphError, Scheduler, dtypes, ops

ARRAY = np.arange(120, dtype=np.float32).reshape(4, 5, 6)


def value(tensor):
    return Scheduler(["reference"]).plan(Graph(tensor)).run()[0]


@pytest.fixture
def x():
    return graphrt.weight("x", ARRAY)


@pytest.mark.parametrize(
    "index",
    [0, -1, slice(1, 3), (..., 2), (slice(None), 1), (1, ..., slice(0, 5, 2)), (slice(3, 1),), (2, 3, 4)],
    ids=repr,
)
def test_slicing_is_numpys(x, index):
    assert np.array_equal(value(x[index]), ARRAY[index])


def test_views_of_views_share_the_root(x):
    view = x[1:].permute(2, 0, 1)[3]
    assert view.root is x
    assert view.offset == 30 * 4 + 3 * 4
    assert np.array_equal(value(view), ARRAY[1:].transpose(2, 0, 1)[3])


@pytest.mark.parametrize("index", [4, (0, 0, 0, 0), slice(None, None, -1), (..., ...), "a"], ids=repr)
def test_a_bad_index_is_an_error(x, index):
    with pytest.raises(GraphError, match=r"\[view\]"):
        x[index]


def test_operators_follow_python(x):
    y = graphrt.weight("y", ARRAY + 1)
    assert np.allclose(value((x + y) * 2 - 1), (ARRAY + ARRAY + 1) * 2 - 1)
    assert np.allclose(value(1 - (x - y) / y), 1 - (ARRAY - (ARRAY + 1)) / (ARRAY + 1))
    assert np.allclose(value(-x / 4), -ARRAY / 4)


def test_layout_facts():
    t = graphrt.weight("t", ARRAY.transpose(1, 0, 2))
    assert not t.is_dense
    assert t.has_dense_rows
    assert t.extent == ARRAY.nbytes
    assert graphrt.weight("s", ARRAY[:, :, ::2]).has_dense_rows is False


def test_quantized_tensors_count_elements_and_step_by_blocks():
    packed = dtypes.from_f32(np.zeros((3, 64), np.float32), dtypes.q8_0)
    t = graphrt.weight("t", packed)
    assert (t.shape, t.strides, t.nbytes) == ((3, 64), (68, 34), 3 * 68)
    assert t[:, 32:].offset == 34
    with pytest.raises(GraphError, match=r"cuts a block of 32 elements"):
        t[:, 16:]


def test_a_shape_must_hold_whole_blocks():
    with pytest.raises(GraphError, match=r"q4_k rows hold whole blocks of 256"):
        graphrt.input("x", (2, 64), "q4_k")


def test_negative_strides_are_refused():
    with pytest.raises(GraphError, match=r"negative strides"):
        graphrt.weight("x", ARRAY[::-1])


def test_a_view_is_bounded_by_its_true_extent():
    t = graphrt.weight("t", np.zeros(16, np.float32))
    ops.view(t, shape=(2, 2), strides=(56, 4))
    with pytest.raises(GraphError, match=r"ends at byte 208; .* ends at 64"):
        ops.view(t, shape=(2, 2), strides=(200, 4))


@pytest.mark.parametrize("leaf", [graphrt.input, graphrt.state])
def test_a_leaf_has_either_a_shape_or_data(leaf):
    for arguments in ({}, {"shape": (4,), "data": np.zeros(4, np.float32)}):
        with pytest.raises(GraphError, match=r'"x" needs either a shape or data'):
            leaf("x", **arguments)


def test_a_state_must_be_writable():
    data = np.zeros(4, np.float32)
    data.flags.writeable = False
    with pytest.raises(GraphError, match=r'\[state\] "x" lies in an array that is read-only'):
        graphrt.state("x", data=data)
