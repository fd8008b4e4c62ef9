"""The rates that mla=auto goes by: measured once, kept, or those of a device."""

import json

import pytest

import graphrt
from graphrt import Scheduler, dtypes
from graphrt.backends.sim import SimBackend
from graphrt.models import mla_rates
from graphrt.models.batch import Batch
from graphrt.models.mla_choice import Kind
from graphrt.models.mla_cost import THEORY, Curve, Heads, Rates
from graphrt.models.mla_rates import MeasuredRates

KIND = Kind(Heads(2, 32, 16, 64, 32), dtypes.f16, dtypes.q8_0, dtypes.q8_0, keys_transposed=True)


@pytest.fixture(autouse=True)
def kept_elsewhere(tmp_path, monkeypatch):
    """No test reads what an earlier one kept; compiled kernels stay where they are."""
    monkeypatch.setattr("graphrt.kept.cache_root", lambda: tmp_path)
    return tmp_path / "mla.json"


@pytest.fixture
def never_measured(monkeypatch):
    def refuse(self):
        raise AssertionError("measured, though it must not be")

    return lambda: monkeypatch.setattr(mla_rates.Stopwatch, "rates", refuse)


def source(*backends: object, **options: object) -> MeasuredRates:
    return MeasuredRates(Scheduler(backends or ["cpu"], threads=1, overrides=(), **options))


def test_rates_are_measured_once(never_measured):
    rates = source()(0, KIND, True)
    assert rates.is_sound
    assert rates.origin == "measured"
    assert [rows for rows, _ in rates.expand.points] == list(mla_rates.TOKENS)
    assert [rows for rows, _ in rates.absorb.points] == [2 << i for i in range(13)]  # 2 heads, up to ABSORBED
    never_measured()
    assert source()(0, KIND, True) == rates
    assert source()(7, KIND, False) == rates


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: {},
        lambda kept: kept | {"read": -1.0},
        lambda kept: kept | {"absorb": []},
        lambda kept: kept | {"expand": [[1, 2], [3]]},
        lambda kept: kept | {"products": "fast"},
        lambda kept: 3,
    ],
)
def test_rates_that_cannot_be_are_measured_again(kept_elsewhere, damage, monkeypatch):
    monkeypatch.setattr(mla_rates.Stopwatch, "rates", lambda self: Rates.of(1e9, 1e9, "measured"))
    made = source()(0, KIND, True)
    whole = json.loads(kept_elsewhere.read_text())
    ((_, kept),) = whole.items()
    kept["values"] = {name: damage(value) for name, value in kept["values"].items()}
    kept_elsewhere.write_text(json.dumps(whole))
    monkeypatch.setattr(mla_rates.Stopwatch, "rates", lambda self: Rates.of(2e9, 1e9, "measured"))
    again = source()(0, KIND, True)
    assert (made.read, made.expand.at(1), again.expand.at(1)) == (1e9, 1e9, 2e9)


def test_a_trial_is_run_once_and_forgotten_with_the_rates(kept_elsewhere, monkeypatch):
    monkeypatch.setattr(mla_rates.Stopwatch, "rates", lambda self: Rates.of(1e9, 1e9, "measured"))
    rates = source()
    rates(0, KIND, True)
    lead = rates.trial(0, KIND, 8, 64)
    assert lead > 0
    monkeypatch.setattr(mla_rates.Stopwatch, "trial", lambda self, tokens, cells: 123.0)
    assert rates.trial(1, KIND, 8, 64) == source().trial(0, KIND, 8, 64) == lead
    assert source().trial(0, KIND, 16, 64) == 123.0
    assert source()(0, KIND, False).is_sound
    rates.measure(rates._backend(0), KIND)
    assert source().trial(0, KIND, 8, 64) == 123.0


def test_a_trial_that_cannot_be_is_run_again(kept_elsewhere, monkeypatch):
    monkeypatch.setattr(mla_rates.Stopwatch, "trial", lambda self, tokens, cells: 2.0)
    source().trial(0, KIND, 8, 64)
    text = kept_elsewhere.read_text()
    for damaged in ("-2.0", "[]", '"fast"'):
        kept_elsewhere.write_text(text.replace("2.0", damaged))
        assert source().trial(0, KIND, 8, 64) == 2.0
    assert source("reference").trial(0, KIND, 8, 64) is None


def test_other_threads_and_other_kinds_are_measured_for_themselves(kept_elsewhere, monkeypatch):
    monkeypatch.setattr(mla_rates.Stopwatch, "rates", lambda self: Rates.of(1e9, 1e9, "measured"))
    source()(0, KIND, True)
    source()(0, Kind(KIND.heads, dtypes.q8_0, KIND.keys, KIND.values, True), True)
    MeasuredRates(Scheduler(["cpu"], threads=2, overrides=()))(0, KIND, True)
    kept = json.loads(kept_elsewhere.read_text())
    assert sorted(len(each["values"]) for each in kept.values()) == [1, 2]


def test_without_weights_nothing_is_measured(never_measured):
    never_measured()
    assert source()(0, KIND, False) is THEORY
    assert source("reference")(0, KIND, True) is THEORY


def test_a_device_has_its_own_rates(never_measured):
    never_measured()
    sim = SimBackend(flops=2e12, bandwidth=3e11)
    rates = MeasuredRates(Scheduler([sim, "cpu"], threads=1, overrides=["cache_latent-1=sim", "never=sim"]))
    found = rates(1, KIND, True)
    assert (found.expand.at(100), found.read, found.origin) == (2e12, 3e11, "by sim's rates")
    assert rates(0, KIND, False) is THEORY


def test_debug_output_tells_the_choice_once_for_all_layers(gguf, capsys, monkeypatch):
    rates = Rates(Curve.flat(1e10), Curve.flat(1e11), Curve.flat(1e10), 1e10, "measured")
    monkeypatch.setattr(mla_rates.Stopwatch, "rates", lambda self: rates)
    model = graphrt.load(gguf("deepseek2_lite"), backends=["cpu"], threads=1, sched_debug=1)
    capsys.readouterr()
    model.new_context().decode(Batch.of(range(100)))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mla auto: ")]
    assert len(said) == 1
    assert said[0].startswith("mla auto: flashmla2 for 100 tokens x 256 cells: ")
    assert said[0].endswith(" ms (measured)")
