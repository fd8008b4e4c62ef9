"""What holds for every op: its documentation, cases that run, results that fit the shape rule and ignore strides."""

from __future__ import annotations

import inspect
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from graphrt import Op, Tensor, ops
from graphrt.testing import Draw, check, normalised_error

ROOT = Path(__file__).parents[2]
ALL = [getattr(ops, name) for name in ops.__all__]


def cases(op: Op, count: int):
    generator = random.Random(7)
    return [op.draw_case(Draw(generator.randint)) for _ in range(count)]


def named(op: Op) -> str:
    return op.name


def test_everything_exported_is_an_op_under_its_own_name():
    assert all(isinstance(op, Op) for op in ALL)
    assert [op.name for op in ALL] == list(ops.__all__) == sorted(ops.__all__)


@pytest.mark.parametrize("op", ALL, ids=named)
def test_docstring_has_a_sentence_and_sections(op):
    text = inspect.cleandoc(op.__doc__)
    assert re.match(r"[A-Z].*[.:]", text.splitlines()[0])
    assert "Args:" in text
    assert "Returns:" in text
    for argument in [*op.tensors, *op.params]:
        assert re.search(rf"\b{argument}\b", text), f"{argument} is not explained"


@pytest.mark.parametrize("op", ALL, ids=named)
def test_reference_agrees_with_the_shape_rule(op):
    report = check(op, backends=["reference"], examples=40)
    assert report.ran["reference"] > 0
    assert not report.refused["reference"]


@pytest.mark.parametrize("op", [op for op in ALL if op is not ops.view], ids=named)
def test_strides_do_not_change_the_result(op):
    for case in cases(op, 60):
        arrays = [None if src is None else array_of(src) for src in case.srcs]
        dense = [None if array is None else array.copy(order="C") for array in arrays]
        assert normalised_error(op.evaluate(case, dense), op.evaluate(case, arrays)) < 1e-12


def array_of(src: Tensor) -> np.ndarray:
    """A source as NumPy sees it, strides and all."""
    return src.data if src.op is None else src.op.evaluate(src, [array_of(each) for each in src.srcs])


@pytest.mark.parametrize("op", ALL, ids=named)
def test_cost_counts_whole_numbers(op):
    for case in cases(op, 30):
        cost = op.cost_of(case)
        assert min(cost.flops, cost.nbytes, cost.batch) >= 0
        assert all(isinstance(number, int) for number in (cost.flops, cost.nbytes, cost.batch))


@pytest.mark.parametrize("folder", ["ops", "backends", "models"])
def test_bare_folder_names_are_refused_with_a_hint(folder):
    done = subprocess.run(
        [sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert f"use `from graphrt import {folder}`" in done.stderr


def test_importing_the_ops_loads_nothing_heavy():
    code = "import sys, graphrt.ops; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"numba", "gguf", "hypothesis", "jinja2", "rich", "graphrt.testing"} & set(done.stdout.split())
