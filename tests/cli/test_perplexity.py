"""`graphrt perplexity`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import graphrt as package
from graphrt.models.perplexity import measure
from tests.cli.conftest import Command

TEXT = "First Citizen: Before we proceed any further, hear me speak. " * 12


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text of a few hundred tokens."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_prints_the_estimate_and_its_error(graphrt: Command, mixtral: Path, text: Path) -> None:
    result = graphrt("perplexity", mixtral, "-f", text, "-c", 32, "--chunks", 4)
    model = package.load(mixtral, n_ctx=32, threads=1)
    assert (
        result.out == f"4 chunks of 32 tokens, 60 scored\nPPL = {measure(model, TEXT, n_ctx=32, chunks=4).estimate}\n"
    )
    assert re.search(r"PPL = \d+\.\d{4} \+/- \d+\.\d{5}\n", result.out)


def test_json_has_the_figures(graphrt: Command, deepseek2: Path, text: Path) -> None:
    options = ("-c", 32, "-ub", 8, "--cache-type", "f32", "-ot", "exps=reference")
    told = json.loads(graphrt("perplexity", deepseek2, "-f", text, *options, "--json").out)
    model = package.load(deepseek2, n_ctx=32, threads=1, cache_type="f32")
    expected = measure(model, TEXT, n_ctx=32).estimate
    assert told["tokens_scored"] == 15 * told["chunks"]
    assert (told["perplexity"], told["error"]) == pytest.approx((expected.value, expected.error), rel=1e-4)


def test_log_probabilities_are_saved_and_compared(graphrt: Command, mixtral: Path, text: Path, tmp_path: Path) -> None:
    saved = tmp_path / "base.kld"
    first = graphrt("perplexity", mixtral, "-f", text, "-c", 32, "--kl-base", saved, "--cache-type", "f32")
    assert str(saved) in first.err
    same, other = (
        json.loads(graphrt("perplexity", mixtral, "--kl", saved, "--cache-type", kind, "--json").out)
        for kind in ("f32", "bf16")
    )
    assert f"PPL = {same['perplexity']['value']:.4f} +/- " in first.out
    assert abs(same["kl_divergence"]["value"]) < 1e-6
    assert same["same_top"] == {"value": 1, "error": 0}
    assert other["kl_divergence"]["value"] > 10 * abs(same["kl_divergence"]["value"])
    assert other["kl_quantiles"]["maximum"] > other["kl_quantiles"]["median"]
    table = graphrt("perplexity", mixtral, "--kl", saved).out
    for words in ("PPL of the base", "KL divergence", "RMS Δp", "same top token", "99.9 %", "median"):
        assert words in table


def test_a_short_text_is_an_error_with_numbers(graphrt: Command, mixtral: Path, text: Path) -> None:
    result = graphrt("perplexity", mixtral, "-f", text)
    assert result.code == 1
    assert re.search(r"the text has \d+ tokens; with n_ctx 512 at least 1024 are needed", result.err)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give a text"),
        (["-f", "absent.txt"], "absent.txt cannot be read"),
        (["--kl", "base.kld", "-c", "64"], "come from the file"),
    ],
)
def test_a_wrong_call_is_a_usage_error(graphrt: Command, mixtral: Path, arguments: list[str], words: str) -> None:
    result = graphrt("perplexity", mixtral, *arguments)
    assert result.code == 2
    assert words in " ".join(result.err.split())


def test_a_file_that_holds_no_log_probabilities_is_named(graphrt: Command, mixtral: Path, text: Path) -> None:
    assert "[text.txt] is no file of log-probabilities" in graphrt("perplexity", mixtral, "--kl", text).err
