"""The frame of the command line: help, errors, start-up."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from graphrt import FormatError, __version__
from tests.cli.conftest import Command

COMMANDS = ["generate", "inspect", "plan", "bench", "perplexity", "tune", "warmup", "convert", "synth"]


def test_help_lists_every_command(graphrt: Command) -> None:
    result = graphrt("--help")
    assert result.code == 0
    assert all(f" {name} " in result.out for name in COMMANDS)


def test_version(graphrt: Command) -> None:
    assert graphrt("--version").out == f"graphrt {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_its_options(graphrt: Command, command: str) -> None:
    result = graphrt(command, "-h")
    assert result.code == 0
    assert f"graphrt {command} " in result.out, "an example"


def test_an_error_is_one_line_and_exit_code_1(graphrt: Command, tmp_path: Path) -> None:
    path = tmp_path / "not-a-model.gguf"
    path.write_bytes(b"hello")
    result = graphrt("inspect", path)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: [not-a-model.gguf]")
    assert result.err.count("\n") == 1


def test_a_missing_file_is_named(graphrt: Command) -> None:
    result = graphrt("generate", "nowhere.gguf", "-p", "x")
    assert result.code == 1
    assert 'no file "nowhere.gguf"' in result.err


def test_debug_shows_the_traceback(graphrt: Command) -> None:
    with pytest.raises(FormatError):
        graphrt("--debug", "inspect", "nowhere.gguf")


def test_python_m_graphrt_is_the_command_and_starts_quickly() -> None:
    start = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-m", "graphrt", "--help"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Usage:" in result.stdout
    assert time.perf_counter() - start < 5  # 0.3 s on a quiet machine
