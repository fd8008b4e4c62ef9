"""check itself must catch a wrong kernel: a check that cannot fail checks nothing."""

import numpy as np
import pytest

import graphrt
from graphrt import Meta, dtypes
from graphrt.backend import YES, Backend, Program
from graphrt.testing import Draw, check, normalised_error


@graphrt.op(name="test.double")
def double(x: graphrt.Tensor) -> Meta:
    """Twice x."""
    return Meta(x.dtype, x.shape)


@double.reference
def _(x):
    return x * x.dtype.type(2)


@double.cases
def _(draw: Draw):
    return double(draw.tensor(draw.shape(), dtypes.f32))


class Wrong(Backend):
    """Runs test.double right, but for the last element of longer rows."""

    name = "wrong"

    def supports(self, node):
        return YES

    def compile(self, split):
        class Run(Program):
            def run(self):
                for node in split.nodes:
                    out = split.location[node].array(node)
                    out[...] = split.location[node.srcs[0]].array(node.srcs[0]) * 2
                    if out.size and out.shape[-1] > 3:
                        out[..., -1] = 0

        return Run()


def test_check_passes_what_is_right():
    report = check(double, backends=["reference"], examples=20)
    assert report.ran["reference"] == 20
    assert report.worst["reference"] == 0


def test_check_finds_a_wrong_kernel(monkeypatch):
    import graphrt.testing as testing

    monkeypatch.setattr(
        testing, "Scheduler", lambda names, **_: graphrt.Scheduler([Wrong() if n == "wrong" else n for n in names])
    )
    with pytest.raises(AssertionError, match=r"\[test.double\] on wrong: normalised mean squared error"):
        check(double, backends=["wrong"], examples=30)


def test_support_mode_counts_refusals_with_their_reasons():
    report = check(double, backends=["cpu"], mode="support", examples=5)
    assert report.refused["cpu"] == {"cpu has no kernel for test.double": 5}
    assert "no kernel" in str(report)


def test_perf_mode_times():
    report = check(double, backends=["reference"], mode="perf", examples=3)
    assert len(report.seconds["reference"]) == 15


def test_normalised_error():
    one = np.ones(4, np.float32)
    assert normalised_error(one, one) == 0
    assert normalised_error(one * 1.1, one) == pytest.approx(0.01, rel=1e-3)
    assert normalised_error(np.array([np.nan], np.float32), np.array([1], np.float32)) == float("inf")
    assert normalised_error(np.array([np.nan], np.float32), np.array([np.nan], np.float32)) == 0
