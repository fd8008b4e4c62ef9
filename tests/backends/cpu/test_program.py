"""Kernels, programs and the thread pool, through an op and a kernel of the test's own."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import graphrt
from graphrt import dtypes
from graphrt.backend import Split
from graphrt.backends import cpu
from graphrt.backends.cpu import host, jit, threads
from graphrt.backends.cpu.args import row_address, rows, share, size
from graphrt.backends.cpu.memory import load_f32_first, store_f32_first
from graphrt.backends.cpu.program import compile_split
from graphrt.backends.cpu.simd import fma
from graphrt.buffer import HostBuffer, Location
from graphrt.op import Meta, op
from graphrt.tensor import Tensor


@op(name="test.square_plus", inplace=["x"], layout={"x": "rows"})
def square_plus(x: Tensor, *, bias: float = 1.0) -> Meta:
    """y = x² + bias"""
    return Meta(x.dtype, x.shape)


@square_plus.reference
def _(x, *, bias):
    x32 = x.astype(np.float32)
    return (x32 * x32 + np.float32(bias)).astype(x.dtype)


@cpu.kernel(square_plus, takes=cpu.floats)
def square_plus_kernel(lanes, out, x):
    from graphrt.backends.cpu.args import float_scalar
    from graphrt.backends.cpu.simd import splat

    out_bytes, x_bytes = dtypes.get(out).nbytes, dtypes.get(x).nbytes

    def run(args, ith, nth):
        n = size(args, 0, 3)
        bias = splat(np.float32(float_scalar(args, 2, 0)), lanes)
        first, last = share(rows(args, 0), ith, nth)
        for row in range(first, last):
            target, source = row_address(args, 0, row), row_address(args, 1, row)
            for i in range(0, n, lanes):
                v = load_f32_first(source + i * x_bytes, x, lanes, n - i)
                store_f32_first(target + i * out_bytes, out, fma(v, v, bias), n - i)

    return run


def plan_of(x: np.ndarray, depth: int = 1, nth: int = 2):
    y = graphrt.input("x", x.shape, dtypes.of(x))
    for _ in range(depth):
        y = square_plus(y, bias=0.25)
    return graphrt.Scheduler(backends=["cpu"], threads=nth).plan(graphrt.Graph([y]))


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("shape", [(37,), (3, 5, 1, 16), (2, 0, 4), (7, 1)])
def test_kernel_agrees_with_the_reference(dtype, shape):
    x = np.random.default_rng(0).standard_normal(shape).astype(dtypes.get(dtype).numpy)
    (y,) = plan_of(x).run(x=x)
    want = square_plus._reference(x, bias=0.25)
    assert y.dtype == x.dtype
    np.testing.assert_allclose(y.astype(np.float32), want.astype(np.float32), rtol=1e-6 if dtype == "f32" else 1e-2)


def test_every_node_runs_on_the_cpu_backend():
    plan = plan_of(np.ones((2, 3), np.float32), depth=3)
    assert {placement.backend.name for placement in plan.placements.values()} == {"cpu"}


def test_threads_more_than_cores_agree_and_finish():
    x = np.random.default_rng(1).standard_normal((8, 33)).astype(np.float32)
    want = plan_of(x, depth=20, nth=1).run(x=x)[0]
    plan = plan_of(x, depth=20, nth=4 * threads.available_cores())
    started = time.perf_counter()
    for _ in range(20):
        np.testing.assert_array_equal(plan.run(x=x)[0], want)
    assert time.perf_counter() - started < 20


def test_idle_workers_use_no_processor_time():
    x = np.ones((4, 16), np.float32)
    plan = plan_of(x, nth=3)
    plan.run(x=x)
    time.sleep(0.5)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.03
    np.testing.assert_allclose(plan.run(x=x)[0], 1.25)


def test_runs_from_several_threads_wait_for_each_other():
    arrays = [np.full((4, 64), float(i), np.float32) for i in range(4)]
    plans = [plan_of(a, depth=1) for a in arrays]
    wrong = []

    def work(i):
        for _ in range(50):
            if not np.array_equal(plans[i].run(x=arrays[i])[0], arrays[i] ** 2 + np.float32(0.25)):
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_the_interpreter_exits_cleanly_while_workers_spin():
    code = (
        "import numpy as np, graphrt\n"
        "x = graphrt.input('x', (4, 64))\n"
        "w = graphrt.weight('w', np.ones((8, 64), np.float32))\n"
        "plan = graphrt.Scheduler(['cpu'], threads=2).plan(graphrt.Graph(graphrt.ops.mul_mat(w, x)))\n"
        "print(float(plan.run(x=np.ones((4, 64), np.float32))[0].sum()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2048.0\n", "")


def test_a_damaged_cache_file_is_compiled_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = jit.Native(threads.start_program, (), host.level())
    assert first.address
    damaged = first.path.read_bytes()[:-100]
    first.path.write_bytes(damaged)
    assert jit.Native(threads.start_program, (), host.level()).address
    assert len(first.path.read_bytes()) == len(damaged) + 100


def test_a_kernel_that_does_not_compile_is_named():
    with pytest.raises(graphrt.KernelError, match="kernel wrong 3 does not compile"):
        _ = jit.native(wrong, 3).address


def wrong(count):
    def run(args, ith, nth):
        return args + "text"

    return run


def test_a_tensor_outside_its_buffer_is_refused():
    node = square_plus(graphrt.input("x", (4, 4)), bias=1.0)
    small = Location(HostBuffer.allocate(64), 16)
    split = Split(cpu.create(graphrt.Settings()), [node], {node: small, node.srcs[0]: small}, {})
    with pytest.raises(graphrt.KernelError, match="buffer of 64"):
        compile_split(split, threads.pool(1))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_can_run_programs():
    x = np.ones((4, 16), np.float32)
    plan = plan_of(x, nth=2)
    plan.run(x=x)
    child = os.fork()
    if child == 0:
        good = np.allclose(plan.run(x=x)[0], 1.25)
        os._exit(0 if good else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    np.testing.assert_allclose(plan.run(x=x)[0], 1.25)


@pytest.mark.parametrize("level", host.levels())
def test_every_simd_level_agrees(level):
    x = np.random.default_rng(2).standard_normal((3, 50)).astype(np.float16)
    with host.use_level(level):
        (y,) = plan_of(x).run(x=x)
    np.testing.assert_array_equal(y, square_plus._reference(x, bias=0.25))
