"""`graphrt generate`."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import graphrt as package
from tests.cli.conftest import Command
from tests.interrupts import GRAPHRT

ROOT = Path(__file__).parents[2]


def test_writes_what_the_model_generates(graphrt: Command, mixtral: Path) -> None:
    result = graphrt("generate", mixtral, "-p", "hello", "-n", 6, "--temp", 0)
    pieces = package.load(mixtral).generate("hello", max_tokens=6, temperature=0)
    assert result.out == f"hello{''.join(pieces)}\n"
    assert "decode" in result.err
    assert "ended by: " in result.err


def test_a_seed_repeats_the_text(graphrt: Command, mixtral: Path) -> None:
    arguments = ["generate", mixtral, "-p", "hello", "-n", 6, "--temp", 2.0, "--top-k", 0]
    first, again, other = (graphrt(*arguments, "--seed", seed).out for seed in (1, 1, 2))
    assert first == again != other


def test_the_prompt_can_come_from_standard_input(
    graphrt: Command, mixtral: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello"))
    assert graphrt("generate", mixtral, "-p", "-", "-n", 1).out.startswith("hello")


def test_chat_puts_the_prompt_into_the_template(graphrt: Command, mixtral: Path) -> None:
    result = graphrt("generate", mixtral, "--chat", "-p", "hello", "-n", 6, "--temp", 0)
    messages = [{"role": "user", "content": "hello"}]
    assert result.out == "".join(package.load(mixtral).generate(messages, max_tokens=6, temperature=0)) + "\n"


def test_chat_without_a_prompt_answers_line_by_line(
    graphrt: Command, mixtral: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\nagain\n"))
    result = graphrt("generate", mixtral, "--chat", "-n", 4, "--temp", 0)
    model = package.load(mixtral)
    first = model.generate([{"role": "user", "content": "hello"}], max_tokens=4, temperature=0)
    answer = "".join(first)
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": model.detokenize(first.tokens)},
        {"role": "user", "content": "again"},
    ]
    assert result.out == f"{answer}\n{''.join(model.generate(messages, max_tokens=4, temperature=0))}\n"
    assert "Ctrl-D" in result.err


def test_verbose_prints_the_placement_with_the_override(graphrt: Command, deepseek2: Path) -> None:
    rule = r"blk\.1\.ffn_.*_exps=reference"
    result = graphrt("generate", deepseek2, "-p", "hello", "-n", 1, "-vv", "-ot", rule)
    assert result.code == 0
    assert f'override "{rule}"' in result.err


def test_without_a_prompt_it_says_what_to_give(graphrt: Command, mixtral: Path) -> None:
    result = graphrt("generate", mixtral)
    assert result.code == 2
    assert "--chat" in result.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--top-p", 2], "top_p is 2"),
        (["--mla", "telepathy"], 'unknown mla "telepathy"'),
        (["--cache-type", "q9"], "q9"),
        (["-ot", "exps=nowhere"], 'no backend is called "nowhere"'),
        (["-c", 2], "2"),
    ],
)
def test_a_wrong_option_is_named(graphrt: Command, deepseek2: Path, arguments: list[object], words: str) -> None:
    result = graphrt("generate", deepseek2, "-p", "hello hello hello", "-n", 1, *arguments)
    assert result.code == 1
    assert result.err.startswith("error: ")
    assert words in result.err


def test_a_cache_in_a_file_saves_the_prompt_from_being_run_again(
    graphrt: Command, mixtral: Path, tmp_path: Path
) -> None:
    arguments = ["generate", mixtral, "-p", "hello world", "-n", 3, "--temp", 0, "--kv-file", tmp_path / "cache.kv"]
    first, second = graphrt(*arguments), graphrt(*arguments)
    assert (first.code, second.code) == (0, 0)
    assert first.out == second.out
    assert "reused" not in first.err
    assert "reused" in second.err
    assert "KV cache: " in second.err


def test_ctrl_c_leaves_a_cache_that_the_next_run_goes_on_from(graphrt: Command, mixtral: Path, tmp_path: Path) -> None:
    arguments = ["generate", mixtral, "-p", "hello", "--temp", 0, "-c", 20000, "--kv-file", tmp_path / "cache.kv"]
    command = [sys.executable, "-c", GRAPHRT, *map(str, arguments), "--context-shift"]
    environment = {**os.environ, "GRAPH_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment, "cwd": ROOT}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout is not None
        process.stdout.read(12)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    result = graphrt(*arguments, "-n", 3)
    assert "reused" in result.err
    assert result.out == graphrt(*arguments[:6], "-n", 3).out


def test_weights_read_into_memory_write_the_same(graphrt: Command, mixtral: Path) -> None:
    arguments = ["generate", mixtral, "-p", "hello", "-n", 8, "--temp", 0]
    usual = graphrt(*arguments).out
    assert graphrt(*arguments, "--no-mmap").out == usual
    assert graphrt(*arguments, "--repack").out == usual


def test_a_full_context_ends_or_shifts(graphrt: Command, mixtral: Path) -> None:
    arguments = ["generate", mixtral, "-p", "hello", "-n", 60, "--temp", 5, "--seed", 3, "-c", 16]
    assert "ended by: context full (with --context-shift it goes on)" in graphrt(*arguments).err
    assert "ended by: max_tokens, after" in graphrt(*arguments, "--context-shift", "--keep", 2).err


def test_a_long_prompt_shows_its_progress_at_a_terminal_only(
    graphrt: Command, mixtral: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["generate", mixtral, "-p", "a b c d " * 150, "-n", 1, "--temp", 0, "-c", 2048]
    assert "/" not in graphrt(*arguments).err.replace("tokens/s", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "0/752" in re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", graphrt(*arguments).err)


def test_verbose_prints_the_size_of_the_cache(graphrt: Command, mixtral: Path, deepseek2: Path) -> None:
    arguments = ["-p", "a", "-n", 1, "-c", 64, "-v"]
    keys = "KV cache: 0.02 MiB (64 cells, 2 layers), K (f16 2x16): 0.01 MiB, V (f16 2x16): 0.01 MiB\n"
    assert keys in graphrt("generate", mixtral, *arguments).err
    assert "64 cells, 3 layers, latent f16 80)\n" in graphrt("generate", deepseek2, *arguments).err
