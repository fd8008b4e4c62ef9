"""Products through BLAS: right for every dtype and layout it takes, and taken only where it measured faster."""

from __future__ import annotations

import json

import numpy as np
import pytest

import graphrt
from graphrt import Graph, Scheduler, Settings, Tensor, dtypes, ops
from graphrt.backends.blas import BlasBackend, crossover, program, rounds
from graphrt.backends.blas.crossover import BATCHES, Crossover
from graphrt.backends.blas.rounds import LEAST_ROUNDS, LOSSES, ROUNDS, Round, blas_pays, take_turns
from graphrt.backends.cpu import CpuBackend
from graphrt.testing import Draw, normalised_error

ONE_THREAD = Settings.from_env({}, threads=1)


def leaf(shape: tuple[int, ...], dtype: str = "f32") -> Tensor:
    return Draw(lambda low, high: low).tensor(shape, dtypes.get(dtype), layout="dense").named("")


def run(y: Tensor, backend: BlasBackend) -> np.ndarray:
    plan = Scheduler([backend, "cpu"], threads=1).plan(Graph(y))
    assert plan.schedule.splits[-1].backend is backend
    return plan.run()[0]


def is_right(y: Tensor, backend: BlasBackend) -> None:
    expected = Scheduler(["reference"]).plan(Graph(y)).run()[0]
    assert normalised_error(run(y, backend), expected) < 1e-11


@pytest.fixture
def blas() -> BlasBackend:
    return BlasBackend(ONE_THREAD, min_batch=0)


@pytest.mark.parametrize("dtype", [dtype.name for dtype in (*dtypes.FLOATS, *dtypes.QUANTIZED)])
def test_weights_of_every_dtype_in_tiles_of_rows(dtype, blas, monkeypatch):
    """Tiles of 24 rows and a rest of 4: the same as the reference on the expanded weight."""
    monkeypatch.setattr(program, "TILE_BYTES", 24 * 512 * 4)
    is_right(ops.mul_mat(leaf((100, 512), dtype), leaf((5, 512))), blas)


@pytest.mark.parametrize(
    "build",
    [
        lambda: ops.mul_mat(leaf((7, 12)), leaf((2, 3, 4, 12))),
        lambda: ops.mul_mat(leaf((1, 1, 7, 12)), leaf((2, 3, 4, 12))),
        lambda: ops.mul_mat(leaf((7, 24))[:, ::2], leaf((3, 24))[:, ::2]),
        lambda: ops.mul_mat(ops.transpose(leaf((12, 7))), ops.transpose(leaf((12, 5)))),
        lambda: ops.mul_mat(leaf((9, 64), "q8_0")[2:, 32:], leaf((3, 64))[1:, 32:]),
        lambda: ops.mul_mat(leaf((1, 12)), leaf((1, 12))),
    ],
    ids=["batch", "batch of one matrix", "steps", "transposed", "slices of blocks", "one by one"],
)
def test_layouts(build, blas):
    is_right(build(), blas)


def test_tiles_are_part_of_the_memory_plan(blas):
    y = ops.mul_mat(leaf((3000, 1024), "q8_0"), leaf((40, 1024)))
    assert blas.workspace(y) == 4 << 20
    assert Scheduler([blas, "cpu"]).schedule(Graph(y)).memory.workspaces
    assert blas.workspace(ops.mul_mat(leaf((3000, 1024)), leaf((40, 1024)))) == 0


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: ops.silu(leaf((4, 8))), "one matrix"),
        (lambda: ops.mul_mat_id(leaf((2, 4, 8)), leaf((3, 1, 8)), graphrt.input("i", (3, 1), "i32")), "one matrix"),
        (lambda: ops.mul_mat(leaf((4, 8)), leaf((3, 8), "f16")), "rows of f32 only"),
        (lambda: ops.mul_mat(leaf((2, 4, 8)), leaf((2, 3, 8))), "a batch of 2"),
        (lambda: ops.mul_mat(leaf((4, 16), "f16")[:, ::2], leaf((3, 8))), "dense rows"),
        (lambda: ops.mul_mat(leaf((16, 32), "q8_0_r16"), leaf((3, 32))), "interleaved for the cpu"),
    ],
    ids=["silu", "mul_mat_id", "f16 rows", "batch of matrices", "f16 columns", "interleaved rows"],
)
def test_what_it_does_not_take_it_says(build, reason, blas):
    answer = blas.supports(build())
    assert not answer
    assert reason in answer.reason


def test_below_its_batch_it_says_from_where_on_it_is_faster():
    answer = BlasBackend(ONE_THREAD, min_batch=64).supports(ops.mul_mat(leaf((4, 8)), leaf((63, 8))))
    assert (answer.ok, answer.reason) == (False, "batch 63 < 64, from where on blas is faster than the CPU kernels")
    assert BlasBackend(ONE_THREAD, min_batch=64).supports(ops.mul_mat(leaf((4, 8)), leaf((64, 8))))


# -- the measurement -------------------------------------------------------------------------------------------------


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """A crossover with made-up times: BLAS takes 80 and the batch, the CPU kernels 1.5 times the batch."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = []

    def made_up(self, dtype, batch, until):
        asked.append((dtype.name, batch))
        return [Round(mixed=80 + batch + 1.5 * batch, kernels=3 * batch)] * ROUNDS

    monkeypatch.setattr(Crossover, "rounds", made_up)
    return asked, tmp_path / "graphrt" / "blas.json"


def test_the_least_batch_is_where_blas_measures_faster(measured):
    """80 + 256 < 0.95 · 1.5 · 256, but 80 + 128 > 0.95 · 1.5 · 128."""
    backend = BlasBackend(ONE_THREAD)
    w = leaf((4, 8))
    assert not backend.supports(ops.mul_mat(w, leaf((255, 8))))
    answer = backend.supports(ops.mul_mat(w, leaf((256, 8))))
    assert (answer.ok, answer.reason) == (True, "blas measured faster from batch 256 on")


def test_small_batches_are_refused_without_a_measurement(measured):
    asked, _ = measured
    assert not BlasBackend(ONE_THREAD).supports(ops.mul_mat(leaf((4, 8)), leaf((31, 8))))
    assert asked == []


def test_it_is_measured_once_and_kept_on_disk_for_each_dtype(measured):
    asked, file = measured
    first = Crossover(ONE_THREAD, lambda: None)
    assert first.least_batch(dtypes.f32) == 256
    count = len(asked)
    assert Crossover(ONE_THREAD, lambda: None).least_batch(dtypes.f32) == 256
    assert len(asked) == count
    assert Crossover(ONE_THREAD, lambda: None).least_batch(dtypes.f16) == 256
    assert len(asked) == 2 * count
    assert [set(kept["values"]) for kept in json.loads(file.read_text()).values()] == [{"f32", "f16"}]


def test_other_threads_are_measured_anew(measured):
    _, file = measured
    Crossover(ONE_THREAD, lambda: None).least_batch(dtypes.f32)
    Crossover(Settings.from_env({}, threads=2), lambda: None).least_batch(dtypes.f32)
    assert len(json.loads(file.read_text())) == 2


@pytest.mark.parametrize("variable", ["OPENBLAS_NUM_THREADS", "OPENBLAS_THREAD_TIMEOUT", "MKL_NUM_THREADS"])
def test_other_settings_of_blas_are_measured_anew(variable, measured, monkeypatch):
    _, file = measured
    Crossover(ONE_THREAD, lambda: None).least_batch(dtypes.f32)
    monkeypatch.setenv(variable, "14")
    Crossover(ONE_THREAD, lambda: None).least_batch(dtypes.f32)
    assert len(json.loads(file.read_text())) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 1}'])
def test_a_damaged_cache_is_measured_anew(content, measured):
    _, file = measured
    file.parent.mkdir()
    file.write_text(content)
    assert Crossover(ONE_THREAD, lambda: None).least_batch(dtypes.f32) == 256


def test_that_blas_is_never_faster_is_kept_too(measured, monkeypatch):
    asked, _ = measured
    monkeypatch.setattr(rounds, "MARGIN", 0.1)
    assert Crossover(ONE_THREAD, lambda: None).least_batch(dtypes.f32) is None
    count = len(asked)
    assert Crossover(ONE_THREAD, lambda: None).least_batch(dtypes.f32) is None
    assert len(asked) == count > 0


def test_other_kernels_are_measured_anew(measured, monkeypatch):
    asked, _ = measured
    Crossover(ONE_THREAD, lambda: None).least_batch(dtypes.f32)
    count = len(asked)
    monkeypatch.setattr(CpuBackend, "version", "other sources")
    Crossover(ONE_THREAD, lambda: None).least_batch(dtypes.f32)
    assert len(asked) == 2 * count


def test_where_blas_is_never_faster_it_takes_nothing(measured, monkeypatch):
    monkeypatch.setattr(rounds, "MARGIN", 0.1)
    answer = BlasBackend(ONE_THREAD).supports(ops.mul_mat(leaf((4, 8)), leaf((5000, 8))))
    assert (answer.ok, answer.reason) == (
        False,
        "the CPU kernels measured faster with weights in f32 at every batch",
    )


def test_a_real_measurement_gives_a_batch_or_none(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(crossover, "ROWS", 64)
    monkeypatch.setattr(crossover, "WIDTH", 256)
    least = Crossover(ONE_THREAD, lambda: BlasBackend(ONE_THREAD, min_batch=0)).least_batch(dtypes.get("q8_0"))
    assert least is None or least in BATCHES


# -- rounds ----------------------------------------------------------------------------------------------------------


class FakeMachine:
    """A clock that only runs move: by what they take, times what another process makes of that turn.

    Args:
        mixed, kernels: seconds of a run of each.
        slow: what each timed turn is multiplied by, in order; 1 after the last.
    """

    def __init__(self, mixed, kernels, slow=()):
        self.now, self.turns, self.slow = 0.0, [], list(slow)
        self.mixed, self.kernels = self.run("mixed", mixed), self.run("kernels", kernels)

    def run(self, name, seconds):
        def work():
            self.turns.append(name)
            warm = len(self.turns) % 2  # the first run of a turn warms up
            self.now += seconds * (1 if warm or not self.slow else self.slow.pop(0))

        return work

    def clock(self):
        return self.now

    def rounds(self, until=1e9, losses=LOSSES):
        return take_turns(self.mixed, self.kernels, until=until, losses=losses, clock=self.clock)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(rounds, "wait_until_quiet", lambda: None)


def test_a_clear_win_pays_after_all_rounds_in_changing_order():
    machine = FakeMachine(mixed=1.8, kernels=2.0)
    found = machine.rounds()
    assert len(found) == ROUNDS
    assert [each.ratio for each in found] == pytest.approx([0.8] * ROUNDS)
    assert machine.turns[:8:2] == ["mixed", "kernels", "kernels", "mixed"]
    assert blas_pays(found)


def test_a_win_within_the_margin_does_not_pay():
    assert not blas_pays(FakeMachine(mixed=1.96, kernels=2.0).rounds())


def test_one_disturbed_round_does_not_change_the_decision():
    disturbed = FakeMachine(1.8, 2.0, slow=[1, 1, 1, 5])
    assert blas_pays(disturbed.rounds())
    lucky = FakeMachine(2.1, 2.0, slow=[1, 5])
    assert not blas_pays(lucky.rounds())


def test_two_disturbed_rounds_end_it_and_leave_the_product_to_the_kernels():
    machine = FakeMachine(1.8, 2.0, slow=[5, 1, 1, 5])
    found = machine.rounds()
    assert len(found) == LOSSES + 1
    assert not blas_pays(found)
    assert len(FakeMachine(1.8, 2.0, slow=[5, 1, 1, 5]).rounds(losses=ROUNDS)) == ROUNDS


def test_wins_by_disturbed_kernels_alone_do_not_pay():
    """The kernels are slowed in every round but one, which BLAS loses: by the fastest turns it is no faster."""
    found = [Round(2.0, 6.0)] * (ROUNDS - 1) + [Round(2.0, 2.0)]
    assert not blas_pays(found)
    assert blas_pays([Round(2.0, 6.0)] * (ROUNDS - 1) + [Round(9.0, 6.0)])


def test_when_time_is_up_few_rounds_decide_only_if_all_were_won():
    assert len(FakeMachine(1.8, 2.0).rounds(until=0.0)) == LEAST_ROUNDS
    assert blas_pays(FakeMachine(1.8, 2.0).rounds(until=0.0))
    assert not blas_pays(FakeMachine(1.8, 2.0, slow=[5]).rounds(until=0.0))


def test_what_follows_a_product_of_blas_counts_as_its_cost():
    """BLAS takes half the time, and its spinning threads make the next product take thrice its time."""
    assert Round(mixed=0.5 + 3.0, kernels=2.0).ratio == pytest.approx(2.5)


def test_waiting_ends_when_the_process_is_quiet(monkeypatch):
    monkeypatch.undo()
    used = iter([0.0, 0.004, 0.004, 0.008, 0.008, 0.008])
    slept = []
    monkeypatch.setattr(rounds.time, "process_time", lambda: next(used))
    monkeypatch.setattr(rounds.time, "sleep", slept.append)
    rounds.wait_until_quiet()
    assert len(slept) == 3
