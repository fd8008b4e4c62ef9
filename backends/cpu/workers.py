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
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, BinaryIO, cast

from graphrt.backends.cpu import host
from graphrt.backends.cpu.jit import Native
from graphrt.errors import KernelError

KERNELS_PER_WORKER = 5  # fewer are compiled sooner than a worker has started
CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}

_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from graphrt.backends.cpu.workers import main
main()
"""

Job = tuple[Native, bytes]  # with what the worker reads
Result = tuple[Native, bytes]
Found = bytes | KernelError | None  # object code, why there is none, or None where the worker does not know
Answer = tuple[Native, Found]


def compile_all(functions: Sequence[Native]) -> Iterator[Result]:
    """Each function with its object code, in the order in which they are done.

    Raises: KernelError if one does not compile; the workers are then stopped, as by any other exception.
    """
    count = min(host.available_cores(), len(functions) // KERNELS_PER_WORKER)
    rest = (yield from _compile_in_workers(functions, count)) if count > 1 else functions
    for function in rest:
        yield function, function.compile()


def _compile_in_workers(functions: Sequence[Native], count: int) -> Generator[Result, None, list[Native]]:
    """Yields results; returns the functions that are left."""
    # The longest first, so that none is left for last: those whose sources are long.
    order = sorted(functions, key=lambda function: -function.source_bytes)
    jobs = {function: _job(function) for function in order}
    waiting = deque((function, job) for function, job in jobs.items() if job is not None)
    left = [function for function, job in jobs.items() if job is None]
    answers: SimpleQueue[Answer | None] = SimpleQueue()
    workers = [_Worker(process, waiting, answers) for process in _start(count)]
    try:
        for worker in workers:
            worker.start()
        running = len(workers)
        while running:
            answer = answers.get()
            if answer is None:
                running -= 1
            elif isinstance(answer[1], KernelError):
                raise answer[1]
            elif answer[1] is None:
                left.append(answer[0])
            else:
                yield answer[0], answer[1]
        return [*left, *(function for function, _ in waiting)]
    finally:
        for worker in workers:
            worker.stop()


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


class _Worker(threading.Thread):
    """Gives a process one job after the other, until there are no more or it is dead; None is its last answer."""

    def __init__(
        self, process: subprocess.Popen[bytes], waiting: deque[Job], answers: SimpleQueue[Answer | None]
    ) -> None:
        super().__init__(name="graphrt-compile", daemon=True)
        self._process, self._waiting, self._answers = process, waiting, answers
        self._is_alive = True

    def run(self) -> None:
        with suppress(IndexError):
            while self._is_alive:
                function, job = self._waiting.popleft()
                self._answers.put((function, self._ask(function, job)))
        self._answers.put(None)

    def stop(self) -> None:
        """End the process, whatever it is at."""
        self._process.kill()
        self._process.wait()
        self.join()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                cast(BinaryIO, pipe).close()

    def _ask(self, function: Native, job: bytes) -> Found:
        try:
            stdin, stdout = cast(BinaryIO, self._process.stdin), cast(BinaryIO, self._process.stdout)
            stdin.write(job)
            stdin.flush()
            size, error = json.loads(stdout.readline())
            code = stdout.read(size)
            if len(code) == size:
                return KernelError(error) if error else code or None
        except (OSError, ValueError):
            pass
        self._is_alive = False
        if -self._process.wait() in CRASHES:
            name = signal.Signals(-self._process.returncode).name
            return KernelError(f"[cpu] kernel {function.label} crashes the compiler ({name})")
        return None


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
    except Exception:  # no code: the parent compiles this one itself, and raises what is wrong with it
        code = b""
    answers.write(json.dumps([len(code), error]).encode() + b"\n" + code)
    answers.flush()


def _find(module: str, name: str, constants: str, level: str) -> Native:
    importlib.import_module(module)
    with host.use_level(level) as forced:
        return Native(_factory(module, name), ast.literal_eval(constants), forced)
