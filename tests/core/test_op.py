import numpy as np
import pytest

import graphrt
from graphrt import GraphError, Meta, ops
from graphrt.op import Op, find, registered

X = graphrt.weight("x", np.ones((2, 3), np.float32))


def test_a_third_partys_op_needs_a_prefix():
    with pytest.raises(GraphError, match=r'"softcap" from .* needs a prefix'):

        @graphrt.op
        def softcap(x: graphrt.Tensor) -> Meta:
            return Meta(x.dtype, x.shape)


def test_two_ops_of_one_name_clash():
    def first(x: graphrt.Tensor) -> Meta:
        return Meta(x.dtype, x.shape)

    def second(x: graphrt.Tensor) -> Meta:
        return Meta(x.dtype, x.shape)

    graphrt.op(name="acme.clash")(first)
    graphrt.op(name="acme.clash")(first)
    with pytest.raises(GraphError, match=r'"acme.clash" is defined by .*first and again by .*second'):
        graphrt.op(name="acme.clash")(second)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.silu(3), r"x must be a Tensor, got 3"),
        (lambda: ops.silu(), r"x must be a Tensor, got None"),
        (lambda: ops.silu(X, X), r"\[silu\] takes 1 tensors \(x\), got 2"),
        (lambda: ops.rms_norm(X, epsilon=1), r'no argument "epsilon".*arguments: x, weight, eps'),
        (lambda: ops.repeat(X), r"\[repeat\] needs shape"),
        (lambda: find("matmul"), r'no op is called "matmul"; known: .*mul_mat'),
    ],
)
def test_a_wrong_call_says_what_is_wrong(call, message):
    with pytest.raises(GraphError, match=message):
        call()


def test_every_op_has_a_reference_a_docstring_and_cases():
    for name, record in registered().items():
        if not record.rule.__module__.startswith("graphrt.ops"):
            continue
        assert isinstance(record, Op)
        assert record.__doc__, name
        assert record._cases is not None, name
        assert record.kind == "view" or record._reference is not None, name


def test_params_are_hashable():
    assert ops.repeat(X, shape=[4, 3]).params["shape"] == (4, 3)
