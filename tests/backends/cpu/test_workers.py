"""Kernels compiled by worker processes: what they cannot do, when they die, and Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from graphrt import KernelError
from graphrt.backends.cpu import host, jit, threads, workers
from graphrt.backends.cpu.jit import Native
from tests.interrupts import HEED

ROOT = Path(__file__).parents[3]
IN_WORKER = "GRAPHRT_TEST_PARENT"  # tells the factories below who compiles


@pytest.fixture(autouse=True)
def two_workers(monkeypatch, tmp_path):
    """However few kernels there are, two workers compile them, and find nothing on disk."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(IN_WORKER, str(os.getpid()))
    monkeypatch.setattr(workers, "KERNELS_PER_WORKER", 1)
    monkeypatch.setattr(host, "available_cores", lambda: 2)


def new(factory, *constants):
    return Native(factory, constants, host.level())


def nothing(_constant=0):
    def run(args, ith, nth):
        pass

    return run


def wrong():
    def run(args, ith, nth):
        return args + "text"

    return run


def dies(signal_number):
    if os.environ[IN_WORKER] != str(os.getpid()):
        os.kill(os.getpid(), signal_number)
    return nothing()


def tells_where(file):
    Path(file).write_text(str(os.getpid()))
    if os.environ[IN_WORKER] != str(os.getpid()):
        time.sleep(100)
    return nothing()


def test_workers_compile_everything_but_what_they_cannot_import(monkeypatch):
    here = []
    monkeypatch.setattr(Native, "compile", lambda self, make=Native.compile: here.append(self) or make(self))

    def local():
        return nothing()

    asked = [new(threads.serve_runs), new(local), new(threads.start_program), new(nothing)]
    told = []
    jit.load_all(asked, lambda done, total, label: told.append((done, total, label)))
    assert [function.factory for function in here] == [local]
    assert all(function.path.exists() and function.address for function in asked)
    assert [(done, total) for done, total, _ in told] == [(done, 4) for done in range(5)]
    assert sorted(label for _, _, label in told[1:]) == sorted(function.label for function in asked)
    assert not list(jit.cache_folder().glob("tmp*"))


def test_a_kernel_that_does_not_compile_is_named():
    with pytest.raises(KernelError, match="kernel wrong does not compile"):
        jit.load_all([new(wrong), new(nothing)])


def test_a_kernel_that_crashes_the_compiler_is_named():
    with pytest.raises(KernelError, match=r"kernel dies 11 crashes the compiler \(SIGSEGV\)"):
        jit.load_all([new(dies, int(signal.SIGSEGV)), new(nothing)])


def test_what_a_worker_that_was_killed_has_left_is_compiled_here():
    asked = [new(dies, int(signal.SIGKILL)), *(new(nothing, i) for i in range(4))]
    jit.load_all(asked)
    assert all(function.address for function in asked)


def test_where_no_worker_starts_all_is_compiled_here(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    asked = [new(nothing), new(nothing, 1)]
    jit.load_all(asked)
    assert all(function.address for function in asked)


def test_ctrl_c_leaves_no_worker_and_no_half_written_file(tmp_path):
    file = tmp_path / "pid"
    program = (
        f"{HEED}\n"
        "from graphrt.backends.cpu import host, jit, workers\n"
        "from tests.backends.cpu import test_workers as test\n"
        "workers.KERNELS_PER_WORKER = 1\n"
        "host.available_cores = lambda: 2\n"
        f"jit.load_all([test.new(test.tells_where, {str(file)!r}), test.new(test.nothing)])\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE) as process:
        pid = wait_for(lambda: file.exists() and int(file.read_text() or 0))
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert b"KeyboardInterrupt" in errors
    wait_for(lambda: not is_running(pid))
    assert not list(tmp_path.glob("graphrt/cpu/tmp*"))


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return found


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
