"""The cost model of multi-head latent attention, with rates that are given."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import graphrt
from graphrt import dtypes
from graphrt.models.mla_choice import Chooser
from graphrt.models.mla_cost import THEORY, CostModel, Curve, Heads, Rates, seen
from graphrt.models.mla_expansion import LatentExpansion
from graphrt.tensor import Tensor

LITE = Heads(count=16, nope=128, rope=64, rank=512, value=128)
V3 = Heads(count=128, nope=128, rope=64, rank=512, value=128)
SHAPES = pytest.mark.parametrize("heads", [LITE, V3], ids=["lite", "v3"])


def test_operations_are_those_of_the_specification():
    tokens, cells, heads = 1, 32768, 16
    products, pairs = tokens * 512 * heads * 256, tokens * cells * heads
    assert LITE.flops("absorb", tokens, cells) == 2 * (products + pairs * 1088)
    assert LITE.flops("expand", tokens, cells) == 2 * (cells * 512 * heads * 256 + pairs * 320)
    assert LITE.crossover == pytest.approx(170.7, abs=0.05)
    # Attention of one token at 32k in all layers: 557 GFLOP of V3, 30.8 of Lite.
    assert 61 * V3.attention("absorb", cells) == pytest.approx(557e9, rel=0.01)
    assert 27 * LITE.attention("absorb", cells) == pytest.approx(30.8e9, rel=0.01)


def test_tokens_see_the_cells_up_to_their_own():
    assert seen(1, 100) == 100
    assert seen(4, 100) == 97 + 98 + 99 + 100
    assert seen(4, 4) == 1 + 2 + 3 + 4


@SHAPES
@pytest.mark.parametrize("cells", [16384, 131072])
def test_equal_rates_give_the_theoretical_crossover(heads, cells):
    model = CostModel(heads, 1152, THEORY)
    assert model.faster(168, cells) == "absorb"  # a little before 170.7: absorbing has products of the tokens, too
    assert model.faster(172, cells) == "expand"


@SHAPES
def test_a_slow_kernel_is_left_for_the_other_way(heads):
    rates = Rates(Curve.flat(1e11), Curve.flat(2e10), Curve.flat(1e11), 1e10, "made up")
    assert CostModel(heads, 1152, rates).faster(512, 16384) == "absorb"
    rates = Rates(Curve.flat(2e10), Curve.flat(1e11), Curve.flat(1e11), 1e10, "made up")
    assert CostModel(heads, 1152, rates).faster(64, 16384) == "expand"


def test_reading_slow_memory_takes_its_time():
    fast, slow = (Rates(Curve.flat(1e12), Curve.flat(1e12), Curve.flat(1e12), read, "") for read in (1e12, 1e9))
    assert CostModel(LITE, 1000, slow).seconds("absorb", 1, 100_000) >= 0.1
    assert CostModel(LITE, 1000, fast).seconds("absorb", 1, 100_000) < 0.01


RATES = st.floats(1e9, 1e13)
CURVES = st.tuples(RATES, RATES, RATES).map(lambda rates: Curve(tuple(zip((1, 64, 512), sorted(rates), strict=True))))


@given(CURVES, CURVES, CURVES, RATES, st.integers(1, 2048), st.integers(0, 60_000))
def test_more_tokens_and_more_cells_take_more_time(absorb, expand, products, read, tokens, more):
    model, cells = CostModel(LITE, 1152, Rates(absorb, expand, products, read, "")), tokens + more
    for way in ("absorb", "expand"):
        assert 0 < model.seconds(way, tokens, cells) <= model.seconds(way, tokens, cells + 256)
    flat = CostModel(LITE, 1152, Rates.of(read, read, ""))
    assert flat.seconds("expand", tokens, cells) <= flat.seconds("expand", tokens + 1, cells + 1)


@given(st.floats(1e10, 1e12), st.floats(0.5, 2.0), st.integers(0, 100_000))
def test_once_expanding_is_faster_it_stays_so_with_more_tokens(rate, ratio, context):
    rates = Rates(Curve.flat(rate * ratio), Curve.flat(rate), Curve.flat(rate), 1e11, "")
    model = CostModel(LITE, 1152, rates)
    chosen = [model.faster(tokens, context + tokens) for tokens in (1, 4, 16, 64, 128, 256, 512, 1024, 2048)]
    assert chosen == sorted(chosen), chosen  # "absorb" before "expand"


def test_a_curve_holds_beyond_its_ends_and_runs_straight_between_its_points():
    curve = Curve(((1, 1e9), (100, 1e11)))
    assert curve.at(0.5) == 1e9
    assert curve.at(1000) == 1e11
    assert curve.at(10) == pytest.approx(1e10)
    assert curve.at(100) == pytest.approx(1e11)


@pytest.mark.parametrize(
    "points", [(), ((1, 0),), ((1, -2.0),), ((2, 1.0), (1, 1.0)), ((1, float("nan")),), ((1, 1), (1, 2))]
)
def test_a_curve_that_cannot_be(points):
    assert not Curve(points).is_sound


@pytest.fixture
def expansion():
    keys, values = (Tensor(name, dtypes.q8_0, (16, 128, 512), role="weight") for name in ("keys", "values"))
    return LatentExpansion(None, keys, values)


class MadeUp:
    """Rates that are given, and a trial whose result is given; it notes what it was asked to try."""

    def __init__(self, rates, lead=None):
        self.rates, self.lead, self.tried = rates, lead, []

    def __call__(self, layer, kind, measure):
        return self.rates

    def trial(self, layer, kind, tokens, cells):
        self.tried.append((tokens, cells))
        return self.lead


def loaded_expansion():
    keys, values = (graphrt.weight(name, np.zeros((16, 128, 512), np.float16)) for name in ("keys", "values"))
    return LatentExpansion(None, keys, values)


def test_operations_alone_decide_where_they_are_clear(expansion):
    source = MadeUp(None)
    choice = Chooser(LITE, source).choose(0, expansion, dtypes.f16, 1, 4096)
    assert choice.way == "absorb"
    assert choice.reason == "mla auto: absorbed for 1 token x 4096 cells: 117 times fewer operations"


def test_else_the_rates_of_the_layers_machine_do(expansion):
    class ByLayer(MadeUp):
        def __call__(self, layer, kind, measure):
            assert not measure, "the weights have no data"
            assert str(kind) == "16 heads of 128+64/128 over 512 in q8_0, by transposed q8_0 and q8_0"
            return Rates.of(1e11, 1e10, "made up") if layer else THEORY

    source = ByLayer(None)
    first, second = (Chooser(LITE, source).choose(layer, expansion, dtypes.q8_0, 512, 4096) for layer in (0, 1))
    assert first.way == second.way == "expand"
    assert second.reason.endswith("(made up)")
    assert source.tried == []


@pytest.mark.parametrize(("lead", "way"), [(0.9, "expand"), (1.1, "absorb"), (None, "absorb")])
def test_a_trial_decides_where_estimates_are_close(lead, way):
    source = MadeUp(Rates.of(1e11, 1e10, "made up"), lead)
    choice = Chooser(LITE, source).choose(0, loaded_expansion(), dtypes.f16, 130, 2100)
    assert choice.way == way
    assert source.tried == [(128, 2048)]
    assert choice.reason.endswith("(made up, and tried for 128 x 2048)" if lead else "(made up)")


def test_no_trial_where_estimates_are_far_apart():
    source = MadeUp(Rates.of(1e11, 1e10, "made up"), 100.0)
    assert Chooser(LITE, source).choose(0, loaded_expansion(), dtypes.f16, 350, 3000).way == "expand"
    assert source.tried == []
