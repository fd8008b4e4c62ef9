"""Kernels compiled by worker processes, as many as there are processors: Numba compiles one at a time in a process.

A worker reads jobs from its standard input, a line of JSON each, and answers each with a line of JSON and the object
code. It ends with its input, so that none outlives its parent, and it writes no file. What a worker cannot do is
compiled here: kernels whose factory it cannot import (of a script, say), or all where it does not start.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, BinaryIO

from graphrt.backends.cpu import host
from graphrt.backends.cpu.jit import Native
from graphrt.errors import KernelError

KERNELS_PER_WORKER = 5  # fewer are compiled sooner than a worker has started
CRASHES = tuple(getattr(signal, name, None) for name in ("SIGSEGV", "SIGABRT", "SIGILL", "SIGBUS", "SIGFPE"))

_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from graphrt.backends.cpu.workers import main
main()
"""

Result = tuple[Native, bytes]


def compile_all(functions: Sequence[Native]) -> Iterator[Result]:
    """Each function with its object code, in the order in which they are done.

    Raises: KernelError if one does not compile; the workers are then stopped, as by any other exception.
    """
    count = min(host.available_cores(), len(functions) // KERNELS_PER_WORKER)
    rest = (yield from _compile_in_workers(functions, count)) if count > 1 else functions
    for function in rest:
        yield function, function.compile()


def _compile_in_workers(functions: Sequence[Native], count: int) -> Any:
    """Yields results; returns the functions that are left."""
    jobs = {function: _job(function) for function in functions}
    waiting = deque((function, job) for function, job in jobs.items() if job is not None)
    left = [function for function, job in jobs.items() if job is None]
    answers: SimpleQueue[tuple[Native, Any] | None] = SimpleQueue()
    workers = _start(count)
    try:
        for worker in workers:
            threading.Thread(target=_feed, args=(worker, waiting, answers), daemon=True).start()
        running = len(workers)
        while running:
            answer = answers.get()
            if answer is None:
                running -= 1
                continue
            function, found = answer
            if isinstance(found, Exception):
                raise found
            if found is None:
                left.append(function)
            else:
                yield function, found
        return [*left, *(function for function, _ in waiting)]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def _job(function: Native) -> bytes | None:
    """What a worker is told; None where it could not find the same function."""
    module, name, constants = function.factory.__module__, function.factory.__qualname__, repr(function.constants)
    if module == "__main__" or function.level.machine is not host.here() or _factory(module, name) is None:
        return None
    return json.dumps([module, name, constants, function.level.name, function.symbol]).encode() + b"\n"


def _factory(module: str, name: str) -> Any:
    """The factory of that name in an imported module, by itself or in the kernel's record; None if there is none."""
    found = getattr(sys.modules[module], name, None)
    return getattr(found, "factory", found)


def _start(count: int) -> list[subprocess.Popen[bytes]]:
    """Workers; none where this Python cannot be started once more."""
    command = [sys.executable, "-c", _PROGRAM, json.dumps(sys.path)]
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    # Ctrl-C at the terminal is for this process, which then stops them.
    alone: dict[str, Any] = {"process_group": 0} if os.name == "posix" else {}
    workers = []
    with suppress(OSError):
        for _ in range(count if sys.executable else 0):
            workers.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere, **alone))
    return workers


def _feed(
    worker: subprocess.Popen[bytes],
    waiting: deque[tuple[Native, bytes]],
    answers: SimpleQueue[tuple[Native, Any] | None],
) -> None:
    """Give a worker one job after the other, until there are no more or it is dead; None is the last answer."""
    is_alive = True
    while is_alive:
        try:
            function, job = waiting.popleft()
        except IndexError:
            break
        try:
            found = _ask(worker, job)
        except (OSError, ValueError):
            is_alive, found = False, None
            if -worker.wait() in CRASHES:
                found = KernelError(f"[cpu] kernel {function.label} crashes the compiler: signal {-worker.returncode}")
        answers.put((function, found))
    answers.put(None)


def _ask(worker: subprocess.Popen[bytes], job: bytes) -> bytes | KernelError | None:
    """A worker's answer: the object code, why there is none, or None where the worker does not know.

    Raises: OSError or ValueError if it is dead.
    """
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(job)
    worker.stdin.flush()
    size, error = json.loads(worker.stdout.readline())
    code = worker.stdout.read(size)
    if len(code) < size:
        raise OSError("the worker died")
    return KernelError(error) if error else code or None


# ---- in the worker ---------------------------------------------------------------------------------------------------


def main() -> None:
    """Answer jobs until there are no more."""
    # What a kernel's module prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        _answer(answers, *json.loads(line))


def _answer(answers: BinaryIO, module: str, name: str, constants: str, level: str, symbol: str) -> None:
    code, error = b"", ""
    try:
        function = _find(module, name, constants, level)
        if function.symbol == symbol:  # else a source file has changed since the parent read it
            code = function.compile()
    except KernelError as problem:
        error = str(problem)
    except Exception:
        code = b""
    answers.write(json.dumps([len(code), error]).encode() + b"\n" + code)
    answers.flush()


def _find(module: str, name: str, constants: str, level: str) -> Native:
    importlib.import_module(module)
    with host.use_level(level) as forced:
        return Native(_factory(module, name), ast.literal_eval(constants), forced)
