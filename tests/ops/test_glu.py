import math

import pytest

from graphrt import ops
from tests.ops.evaluate import close, drawn, leaf, refuses, run, values

ACTIVATIONS = {"swiglu": ops.silu, "geglu": ops.gelu, "reglu": ops.relu}


def test_swiglu_by_hand():
    close(run(ops.swiglu(leaf([1.0, -2.0]), leaf([3.0, 0.5]))), [3 / (1 + math.exp(-1)), -1 / (1 + math.exp(2))])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gate_passes_through_the_activation(name):
    gate, up = drawn(2, 5), drawn(2, 5, seed=1)
    expected = run(ACTIVATIONS[name](gate)) * values(up)
    close(run(getattr(ops, name)(gate, up)), expected)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_one_tensor_holds_the_gate_first(name):
    both = drawn(3, 8)
    op = getattr(ops, name)
    close(run(op(both)), run(op(both[:, :4], both[:, 4:])))


def test_refusals():
    refuses(r"\[swiglu\] gate f32 \[2, 4\] and up f32 \[2, 5\] differ", lambda: ops.swiglu(drawn(2, 4), drawn(2, 5)))
    refuses(r"\[geglu\] without up, gate must hold both halves .*, got f32 \[2, 5\]", lambda: ops.geglu(drawn(2, 5)))
