"""`graphrt warmup`: what it compiled ahead need not be compiled by the first run."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphrt.backends.cpu import jit
from tests.cli.conftest import Command


def test_what_is_warm_compiles_nothing(graphrt: Command, mixtral: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = graphrt("warmup", mixtral, "--cache-type", "f16", "--cache-type", "f32", "-c", 64)
    assert result.code == 0, result.err
    rows = [line.split() for line in result.out.splitlines() if mixtral.name in line]
    assert [row[1] for row in rows] == ["f16", "f32"]
    assert all(int(row[2]) > 10 for row in rows)
    assert f"kept in {jit.cache_folder().parent}" in result.out

    monkeypatch.setattr(jit.Native, "compile", lambda self: pytest.fail(f"{self.label} is compiled"))
    monkeypatch.setattr(jit, "_compile_all", lambda missing, _: pytest.fail(f"{missing[0].label} is compiled"))
    for name in list(jit._functions):
        monkeypatch.delitem(jit._functions, name)
    prompt = "a b c d e f " * 4
    for cache_type in ("f16", "f32"):
        arguments = ["-p", prompt, "-n", 4, "--temp", 0, "-c", 64, "--cache-type", cache_type]
        assert graphrt("generate", mixtral, *arguments).code == 0


def test_a_wrong_cache_type_is_named(graphrt: Command, mixtral: Path) -> None:
    result = graphrt("warmup", mixtral, "--cache-type", "q9")
    assert result.code == 1
    assert "q9" in result.err
