"""The options that place weights and nodes, their order, what is said of rules that match nothing, and Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.interrupts import GRAPHRT

ROOT = Path(__file__).parents[2]


def generate(graphrt: Command, model: Path, *options: object) -> str:
    """The scheduler's words about a few tokens of text."""
    result = graphrt("generate", model, "-p", "hello", "-n", 2, "--temp", 0, "-vv", *options)
    assert result.code == 0, result.err
    return result.err


def rules(said: str) -> dict[str, int]:
    """Each rule of the debug output, with the tensors that it placed in the last graph."""
    listed = re.findall(r'^rule "(.*)": (?:(\d+) tensors?|matches nothing here)$', said, re.MULTILINE)
    return {rule: int(count or 0) for rule, count in listed}


def test_rules_come_in_order_from_options_file_experts_and_environment(
    graphrt: Command, mixtral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rules"
    file.write_text("# attention\nattn_k=reference\n\nattn_{1,2}v=reference\n")
    monkeypatch.setenv("GRAPH_TENSOR_OVERRIDES", "attn_output=reference")
    said = generate(
        graphrt, mixtral, "-ot", "attn_q=reference", "-ot", "attn_v=cpu", "--override-file", file, "--cpu-moe"
    )
    assert list(rules(said)) == [
        "attn_q=reference", "attn_v=cpu", "attn_k=reference", "attn_{1,2}v=reference",
        r"\.ffn_(gate|up|down|gate_up)_exps\.=cpu", "attn_output=reference",
    ]  # fmt: skip
    assert 'override "attn_output=reference"' in said
    assert 'warning: the override "attn_{1,2}v=reference" matched nothing' in " ".join(said.split())
    assert said.count("warning:") == 1


def test_experts_of_the_first_layers_stay_on_the_cpu(graphrt: Command, mixtral: Path) -> None:
    said = generate(graphrt, mixtral, "--device", "sim", "--n-cpu-moe", 1, "-ngl", 99)
    placed = rules(said)
    assert placed[r"^blk\.(0)\.ffn_(gate|up|down|gate_up)_exps\.=cpu"] == 3
    assert "blk.1.ffn_up_exps.weight" in said
    assert re.search(r"blk\.1\.ffn_up_exps\.weight .*@sim: override", said)
    assert not re.search(r"blk\.0\.ffn_up_exps\.weight .*@sim: override", said)


@pytest.mark.parametrize(("count", "on_device"), [(0, set()), (1, set()), (2, {1}), (3, {0, 1})])
def test_the_last_layers_go_to_the_device(graphrt: Command, mixtral: Path, count: int, on_device: set[int]) -> None:
    said = generate(graphrt, mixtral, "--device", "sim", "-ngl", count)
    assert {int(layer) for layer in re.findall(r"blk\.(\d+)\.attn_q\.weight .*@sim: override", said)} == on_device
    assert bool(re.search(r"output\.weight .*@sim: override", said)) == (count > 0)


def test_a_phase_has_rules_of_its_own(graphrt: Command, mixtral: Path) -> None:
    said = generate(graphrt, mixtral, "--device", "sim", "-ot", r"ffn_up_exps@prompt=sim")
    prompt, decode = said.split("graph: ")[1:3]
    assert list(rules(prompt).values()) == [2]
    assert list(rules(decode).values()) == [0]
    assert "warning" not in said


def test_nodes_are_placed_by_name_or_op(graphrt: Command, mixtral: Path) -> None:
    said = generate(graphrt, mixtral, "--override-node", "^rms_norm$=reference", "--override-node", "kqv-1=reference")
    assert len(re.findall(r'@reference = rms_norm\(.*override "\^rms_norm\$=reference"', said)) >= 5
    assert re.search(r'kqv-1 .*@reference = attention\(.*override "kqv-1=reference"', said)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-ot", "exps=nowhere"], '"exps=nowhere": no backend is called "nowhere"; there are: cpu, reference'),
        (["-ot", "(=cpu"], '"(=cpu": the pattern is not a regular expression'),
        (["-ot", "exps@lunch=cpu"], 'no phase is called "lunch"; there are: prompt, decode'),
        (["--override-node", "exps"], '"exps" is not of the form regex=backend'),
        (["--override-file", "absent.txt"], "the file absent.txt cannot be read"),
        (["--device", "warp"], 'no backend is called "warp"; there are: '),
        (["-ngl", "2"], "gpu_layers is 2, but none of the backends is a device: cpu, "),
    ],
)
def test_what_cannot_be_is_quoted(graphrt: Command, mixtral: Path, options: list[str], words: str) -> None:
    result = graphrt("generate", mixtral, "-p", "hello", "-n", 1, *options)
    assert result.code == 1
    assert words in result.err


def test_bench_takes_them_too(graphrt: Command, mixtral: Path) -> None:
    result = graphrt("bench", mixtral, "-p", 2, "-n", 0, "-r", 1, "--device", "sim", "-ngl", 2, "-ot", "nothing=cpu")
    assert result.code == 0
    assert "| sim,cpu" in result.out
    assert 'warning: the override "nothing=cpu" matched nothing' in result.err


def test_ctrl_c_ends_with_what_was_written_and_the_timings(mixtral: Path) -> None:
    command = [sys.executable, "-c", GRAPHRT, "generate", str(mixtral), "-p", "hello", "--ignore-eos"]
    environment = {**os.environ, "GRAPH_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment, "cwd": ROOT}
    with subprocess.Popen([*command, "-c", "100000", "--device", "reference"], **pipes) as process:
        assert process.stdout is not None
        first = process.stdout.read(20)
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert first.startswith("hello")
    assert rest.endswith("\n")
    assert "decode" in said
    assert "ended by: interrupt" in said
    assert "Traceback" not in said


COMMANDS = {
    "inspect": ("inspect", "tiny-mixtral", "--graph"),
    "generate": ("generate", "tiny-mixtral", "-p", "To be", "-n", 1),
    "bench": ("bench", "tiny-mixtral", "-p", 1, "-n", 0, "-r", 1),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_weights_that_every_run_copies_are_a_warning(graphrt: Command, name: str) -> None:
    """A rule runs a product of experts on a device while its weight stays on the host."""
    options = (*COMMANDS[name], "--device", "sim", "--override-node", "ffn_moe_up-0=sim")
    result = graphrt(*options)
    assert result.code == 0
    assert "warning: blk.0.ffn_up_exps.weight: " in result.err
    assert r'"^blk\.0\.ffn_up_exps\.weight$=sim" as the first override would save that' in result.err
    saved = graphrt(*options, "-ot", r"^blk\.0\.ffn_up_exps\.weight$=sim")
    assert saved.code == 0
    assert "warning: blk" not in saved.err
