"""The command line as a function, and a small model made by its own converter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from graphrt.cli.app import run

FIXTURES = Path(__file__).parents[1] / "fixtures"


class Result(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def graphrt(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `graphrt ARGUMENTS…` in this process, on a wide terminal."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("GRAPH_THREADS", "1")
    monkeypatch.setenv("GRAPHRT_TRACEBACK", "")

    def call(*arguments: object) -> Result:
        try:
            code = run([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        return Result(code, *capfd.readouterr())

    return call


def converted(name: str, folder: Path) -> Path:
    """A model of tests/fixtures as a GGUF file, made by the command itself."""
    path = folder / f"{name}.gguf"
    with pytest.raises(SystemExit) as end:
        run(["convert", str(FIXTURES / name), str(path), "--type", "f32"])
    assert end.value.code == 0
    return path


@pytest.fixture(scope="session")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mixtral with random weights and a tokenizer."""
    return converted("mixtral", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def deepseek2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DeepSeek-V2-Lite with random weights and a tokenizer."""
    return converted("deepseek2_lite", tmp_path_factory.mktemp("models"))
