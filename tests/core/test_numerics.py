"""The numerics watch: what it finds, what it says, and what it lets pass."""

from collections.abc import Callable

import numpy as np
import pytest

import graphrt
from graphrt import Graph, NumericsError, Scheduler, Tensor, ops
from graphrt.backends.reference import ReferenceBackend
from graphrt.numerics import Values

INF = float("inf")


def x(shape: tuple[int, ...] = (2, 4)) -> Tensor:
    return graphrt.input("x", shape)


def run(output: Tensor, level: int = 1, backends: tuple = ("reference",), **inputs: object) -> list[np.ndarray]:
    arrays = {name: np.asarray(values, np.float32) for name, values in inputs.items()}
    return Scheduler(backends, check_numerics=level).plan(Graph(output)).run(arrays)


def alarm(output: Tensor, level: int = 1, backends: tuple = ("reference",), **inputs: object) -> str:
    """The message of the error that a run ends with."""
    with pytest.raises(NumericsError) as caught:
        run(output, level, backends, **inputs)
    return str(caught.value)


def test_the_first_node_is_named_with_its_sources_ranges():
    square = ops.sqr(x()).named("square")
    message = alarm(ops.add(square, square).named("later"), x=np.full((2, 4), 1e30))
    first, source, hint = message.splitlines()
    assert first == (
        "[numerics] square f32[2, 4] = sqr on reference is the first that is not finite: 8 infinite of 8 values"
    )
    assert source == "  source x f32[2, 4]: 1e+30 to 1e+30"
    assert "overflow f32" in hint


def test_ranges_are_those_before_a_result_took_over_the_memory():
    plan = Scheduler(["reference"], check_numerics=1).plan(Graph(ops.sqrt(ops.neg(x()).named("negative"))))
    assert plan.schedule.memory.inplace, "sqrt runs in place here"
    with pytest.raises(NumericsError, match=r"source negative f32\[2, 4\]: -4 to -4\n.*square root of -4"):
        plan.run(x=np.full((2, 4), 4, np.float32))


@pytest.mark.parametrize(
    ("build", "values", "hint"),
    [
        (lambda x: ops.sqrt(x), -1.0, "square root of -1: clamp the source"),
        (lambda x: ops.div(x, ops.scale(x, factor=0.0)), 1.0, "division by 0: clamp the divisor"),
        (lambda x: ops.exp(x), 100.0, "exp of 100 overflows"),
        (lambda x: ops.cast(x, dtype="f16"), 1e5, "f16 holds at most 65504, the sources reach 1e+05: use bf16 or f32"),
        (lambda x: ops.rms_norm(x, eps=0.0), 0.0, "the norm of a row of zeros: eps must be above 0"),
        (lambda x: ops.sqr(x), np.nan, "NaN is in x already, an input: look at what was written into it"),
    ],
)
def test_hints(build: Callable[[Tensor], Tensor], values: float, hint: str) -> None:
    assert hint in alarm(build(x()), x=np.full((2, 4), values))


def test_a_cache_of_f16_that_overflows_is_told_to_be_wider():
    cache = graphrt.state("cache_k-0", (4, 4), "f16")
    ids = graphrt.constant("ids", np.array([1, 2], np.int32))
    message = alarm(ops.set_rows(cache, x(), ids), x=np.full((2, 4), 7e4))
    assert "use bf16 or f32 for cache_k-0" in message


def test_a_damaged_weight_is_named():
    w = graphrt.weight("blk.0.ffn_up.weight", np.full((3, 4), np.inf, np.float32))
    message = alarm(ops.mul_mat(w, x()), x=np.ones((2, 4)))
    assert "infinities are in blk.0.ffn_up.weight already, a weight: the file is damaged" in message


def test_masks_of_infinity_pass():
    scores = x()
    nothing = ops.fill(scores.reshape(1, 2, 4), value=-INF)
    kept = graphrt.constant("kept", np.array([[1]], np.int32))
    masked = ops.set_rows(nothing, ops.get_rows(scores.reshape(1, 2, 4), kept), kept).reshape(2, 4)
    given = graphrt.constant("mask", np.array([[0, -INF, 0, 0], [0, 0, 0, -INF]], np.float32))
    run(ops.add(masked, scores), x=np.ones((2, 4)))
    (shares,) = run(ops.soft_max(ops.add(scores, given)), x=np.ones((2, 4)))
    assert shares[0].tolist() == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3])


def test_nan_out_of_a_mask_does_not_pass():
    nothing = ops.fill(x(), value=-INF)
    assert "NaN" in alarm(ops.sub(nothing, nothing), x=np.ones((2, 4)))


class Crooked(ReferenceBackend):
    """A backend whose results are wrong where an op is told to be."""

    name = "crooked"

    def __init__(self, value: float) -> None:
        self.value = value

    def compile(self, split):
        program = super().compile(split)
        right = program.run

        def run():
            right()
            for node in split.nodes:
                if node.op.name == "silu":
                    split.location[node].array(node).flat[-1] = self.value

        program.run = run
        return program


def test_level_2_names_the_first_result_that_the_reference_denies():
    output = ops.sqr(ops.silu(ops.neg(x())).named("bent")).named("later")
    ones = np.ones((2, 4))
    run(output, 1, (Crooked(0.5),), x=ones)
    message = alarm(output, 2, (Crooked(0.5),), x=ones)
    assert message.startswith("[numerics] bent f32[2, 4] = silu on crooked differs from the reference: normalised mean")
    assert '--override-node "^bent$=reference"' in message


def test_a_kernel_that_alone_is_not_finite_is_at_fault():
    message = alarm(ops.silu(x()).named("bent"), 1, (Crooked(np.nan),), x=np.ones((2, 4)))
    assert "the reference's result of the same sources is finite: the fault is in the kernel" in message


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("name", ["tiny-deepseek2", "tiny-mixtral"])
def test_models_that_work_raise_no_alarm(name: str, level: int) -> None:
    plain, watched = (graphrt.load(name, threads=1, check_numerics=check) for check in (0, level))
    tokens = plain.generate("ROMEO:", max_tokens=3, temperature=0)
    again = watched.generate("ROMEO:", max_tokens=3, temperature=0)
    assert "".join(tokens) == "".join(again)


def test_values_count_what_is_not_finite():
    found = Values.of(np.array([1, np.nan, -3, np.inf, -np.inf], np.float32))
    assert (found.low, found.high, found.nans, found.infinities) == (-3, 1, 1, 2)
    assert str(found) == "-3 to 1, 1 NaN, 2 infinite"
    assert str(Values.of(np.array([np.nan], np.float32))) == "no finite value, 1 NaN"
