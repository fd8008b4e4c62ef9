"""The shim catches mistakes: each planted one is found, and the same kernel without it is not complained of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphrt.backends.cuda.launch import Launch, Whole, bind
from graphrt.backends.cuda.shim_device import ShimDevice
from graphrt.backends.cuda.units import Unit
from graphrt.errors import KernelError

INSTANCES = [
    *("sum_of_64<true>", "sum_of_64<false>", "copy_by_two_groups<0>", "copy_by_two_groups<1>", "shift<0>", "shift<1>"),
    *("read_late<true>", "read_late<false>", "meet<true>", "meet<false>", "read_four<0>", "read_four<1>"),
    *("leave_a_copy<0>", "take_from_the_next<true>", "take_from_the_next<false>"),
    *("copy_from<0>", "copy_from<1>", "read_matrices<0>", "read_matrices<2>"),
]
X = np.arange(256, dtype=np.float32)


HERE = Path(__file__).parent
UNIT = Unit("planted", INSTANCES, folder=HERE)


def run(
    expression: str,
    threads: int,
    outputs: int,
    inputs: int,
    shared: int = 0,
    blocks: int = 1,
    **options: Any,
) -> np.ndarray:
    """The floats of y after a launch over so many floats of y and x, on a device of these options."""
    device = ShimDevice(**options)
    y, _keeps_y = device.allocate(4 * outputs)
    x, _keeps_x = device.allocate(4 * inputs)
    device.upload(x, X[:inputs])
    arguments = [Whole(y)] if "meet" in expression else [Whole(y), Whole(x)]
    launch = Launch(UNIT.kernel(expression), [blocks], [threads], arguments, shared)
    replay, _ = device.prepare([bind(launch, {}, None)])
    replay()
    result = np.empty(outputs, np.float32)
    device.download(y, result)
    return result


def sums(correct: bool) -> list[list[float]]:
    """The sums that both warps see, in three orders of the threads."""
    return [run(f"sum_of_64<{str(correct).lower()}>", 64, 2, 64, order=order).tolist() for order in (0, 1, 7)]


def test_a_missing_barrier_shows_in_some_order():
    expected = [float(X[:64].sum())] * 2
    assert all(each == expected for each in sums(True))
    assert any(each != expected for each in sums(False))


def test_a_missing_barrier_shows_though_all_warps_go_on_evenly():
    """Shuffled, a warp is held now and then; not in the other orders."""
    orders = range(12)
    assert all(run("read_late<true>", 64, 1, 2, order=order) == X[1] for order in orders)
    late = [order for order in orders if run("read_late<false>", 64, 1, 2, order=order) != X[1]]
    assert late
    assert min(late) > 1


def test_a_wait_for_too_few_copies_shows():
    right = run("copy_by_two_groups<0>", 32, 256, 256, shared=1024).reshape(64, 4)
    wrong = run("copy_by_two_groups<1>", 32, 256, 256, shared=1024).reshape(64, 4)
    rows = X.reshape(64, 4)
    np.testing.assert_array_equal(right, np.concatenate([rows[31::-1], rows[:31:-1]]))
    np.testing.assert_array_equal(wrong[:32], right[:32])
    assert np.isnan(wrong[32:]).all(), "shared memory that nobody wrote is NaN"


def test_copies_that_nobody_waits_for_end_with_their_block():
    """Left to a later kernel, they would write to memory that is something else's by then."""
    np.testing.assert_array_equal(run("leave_a_copy<0>", 1, 4, 8, shared=16, blocks=2), X[4:8])


def test_blocks_that_read_what_others_write_show_in_some_order():
    def taken(correct: str) -> set[bytes]:
        runs = (run(f"take_from_the_next<{correct}>", 1, 8, 8, blocks=8, order=order) for order in (0, 1, 7))
        return {result.tobytes() for result in runs}

    assert len(taken("true")) == 1
    assert len(taken("false")) == 3


def test_copies_and_matrices_that_begin_anywhere_are_an_error():
    np.testing.assert_array_equal(run("copy_from<0>", 1, 4, 8, shared=16), X[:4])
    run("read_matrices<0>", 32, 128, 1, shared=1024)
    with pytest.raises(KernelError, match=r"copy_async from .* to .*, which 16 does not divide"):
        run("copy_from<1>", 1, 4, 8, shared=16)
    with pytest.raises(KernelError, match=r"ldmatrix at .*, which 16 does not divide"):
        run("read_matrices<2>", 32, 128, 1, shared=1024)


def test_a_grid_of_no_blocks_is_an_error():
    with pytest.raises(KernelError, match=r"a grid of 0 x 1 x 1 blocks"):
        run("shift<0>", 1, 1, 1, blocks=0)


def test_barriers_that_part_are_an_error():
    assert run("meet<true>", 64, 64, 1).tolist() == [1.0] * 64
    parted = r"meet<false> failed: .*block \(0, 0, 0\) wait for each other: thread 0 at .*planted.cu:\d+; thread 32 at"
    with pytest.raises(KernelError, match=parted):
        run("meet<false>", 64, 64, 1)


@pytest.mark.parametrize(
    ("expression", "option", "dies"),
    [
        ("shift<0>", "guarded", False),
        ("shift<1>", "guarded", True),
        ("read_four<0>", "checked", False),
        ("read_four<1>", "checked", True),
    ],
)
def test_what_ends_the_process(expression, option, dies):
    threads, outputs = (16, 16) if "shift" in expression else (1, 4)
    call = f"test_shim.run({expression!r}, {threads}, {outputs}, 16, {option}=True)"
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import test_shim; {call}; print('alive')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ("alive" in done.stdout) is not dies, done.stderr
    if dies and option == "checked":
        assert "misaligned address" in done.stderr
