"""How soon a command is there once its kernels are on disk, in processor time, which other processes hardly change."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")

ROOT = Path(__file__).parents[2]
GENERATE = ["-m", "graphrt", "generate", "tiny-deepseek2", "-p", "ROMEO:", "-n", "1", "--temp", "0"]


def seconds_of(*arguments: str) -> tuple[float, str]:
    """Processor time of a Python process at a terminal of its own, and what it wrote there."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "GRAPH_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}
    before = _used_by_children()
    with subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        written = _read_all(ours)
    assert process.returncode == 0, written
    return _used_by_children() - before, written


def _read_all(terminal: int) -> str:
    parts = []
    try:
        while part := os.read(terminal, 4096):
            parts.append(part)
    except OSError:  # Linux' way to say that the other end is closed
        pass
    os.close(terminal)
    return b"".join(parts).decode()


def _used_by_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_first_token_is_there_within_two_seconds() -> None:
    _, written = seconds_of(*GENERATE)  # compiles what is missing
    assert "ROMEO:" in written
    found = [seconds_of(*GENERATE) for _ in range(3)]
    assert not any("compiling" in written for _, written in found)
    assert min(seconds for seconds, _ in found) < 2  # 0.75 s on a quiet machine


def test_import_takes_half_a_second() -> None:
    assert min(seconds_of("-c", "import graphrt")[0] for _ in range(3)) < 0.5  # 0.24 s on a quiet machine
