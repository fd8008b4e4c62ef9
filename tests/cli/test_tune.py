"""`graphrt tune`: rates measured anew, and what follows from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command


def test_rates_are_measured_anew_and_shown(
    graphrt: Command, deepseek2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graphrt.kept.cache_root", lambda: tmp_path)
    found = []
    for _ in range(2):
        result = graphrt("tune", deepseek2, "-t", 1)
        assert result.code == 0, result.err
        found.append(json.loads((tmp_path / "mla.json").read_text()))
    assert found[0] != found[1]
    assert "absorbed" in result.out
    assert "context 131072" in result.out
    assert "GB/s" in result.out


def test_a_model_without_latents(graphrt: Command, mixtral: Path) -> None:
    result = graphrt("tune", mixtral)
    assert result.code == 2
    assert "llama models have one way to attend only" in result.err
