"""The benchmark of the cuda backend runs; on the CPU, over tiny shapes."""

from __future__ import annotations

import sys

from docs.benchmarks import cuda


def test_dry_run_measures_every_kernel_and_a_model(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cuda", "--dry"])
    monkeypatch.setattr(cuda, "REPEATS", 1)
    cuda.main()
    told = capsys.readouterr().out
    prompts = [f"mul_mat bf16, 16 columns, by {maker} |" for maker in cuda.MAKERS]
    prompts += [f"64 experts of 8 x 128, 16 tokens, by {maker} |" for maker in cuda.MAKERS[1:]]
    rows = ("mul_mat q4_0, 1 column |", *prompts, "MLA decoding, 128 heads", "q4_0, exps=cpu |")
    assert all(row in told for row in rows)
    assert " 0.0 |\n" not in told.split("| model |")[1]
