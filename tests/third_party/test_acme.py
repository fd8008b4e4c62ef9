"""A package from outside, acme/, with an op and a backend: installed beside graphrt in an empty folder, and used."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOT_SOURCE = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info", "build")

pytestmark = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this environment has no pip")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that graphrt and acme are installed into, from copies, so that nothing is built in the checkout."""
    folder = tmp_path_factory.mktemp("third_party")
    for name in ("graphrt", "ops", "backends", "models"):
        shutil.copytree(ROOT / name, folder / "graphrt" / name, symlinks=True, ignore=NOT_SOURCE)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "graphrt" / name)
    shutil.copytree(Path(__file__).with_name("acme"), folder / "acme", ignore=NOT_SOURCE)
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation", "--quiet"]
    finished = subprocess.run(
        [*command, "--target", folder / "site", folder / "graphrt", folder / "acme"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return folder / "site"


def python(site: Path, *arguments: str) -> str:
    """What Python prints with the installed packages in reach and the checkout out of it."""
    environment = {**os.environ, "PYTHONPATH": str(site), "GRAPH_THREADS": "1"}
    finished = subprocess.run(
        [sys.executable, *arguments], cwd=site, env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def told(site: Path, *lines: str) -> Any:
    """The value of `answer` after these lines ran."""
    return json.loads(python(site, "-c", "\n".join(["import json, graphrt", *lines, "print(json.dumps(answer))"])))


def test_the_packages_in_use_are_the_installed_ones(site: Path) -> None:
    found = told(site, "import acme_graphrt", "answer = [graphrt.__file__, acme_graphrt.__file__]")
    assert [Path(file).parents[1] for file in found] == [site, site]


def test_the_backend_is_listed_beside_the_built_in_ones(site: Path) -> None:
    found = told(site, "from graphrt.backend import available", "answer = available()")
    assert found["acme"] == "acme_graphrt.backend:create"
    assert {"cpu", "reference", "blas", "sim"} <= set(found)


def test_check_runs_the_ops_cases_on_every_backend(site: Path) -> None:
    ran = told(
        site,
        "import acme_graphrt",
        "report = graphrt.testing.check(acme_graphrt.hard_swish, backends=['cpu', 'sim', 'acme'], examples=30)",
        "answer = [report.ran, report.refused]",
    )
    counts, refused = ran
    assert counts["cpu"] == counts["sim"] == 30
    assert 0 < counts["acme"] <= 30
    assert counts["acme"] + refused["acme"].get("acme reads dense tensors only", 0) == 30


def test_a_graph_runs_partly_on_the_backend(site: Path) -> None:
    value, backends, reasons = told(
        site,
        "import numpy as np, acme_graphrt",
        "w = graphrt.weight('w', np.eye(4, dtype=np.float32))",
        "x = graphrt.input('x', (2, 4))",
        "y = graphrt.ops.sqr(acme_graphrt.hard_swish(graphrt.ops.mul_mat(w, x)))",
        "plan = graphrt.Scheduler(['acme', 'cpu'], overrides=['w=acme']).plan(y)",
        "(value,) = plan.run(x=np.array([[-9, -3, 0, 9], [1, 2, 3, 4]], np.float32))",
        "placed = list(plan.placements.values())",
        "answer = [value.tolist(), [p.backend.name for p in placed], [p.reason for p in placed]]",
    )
    assert backends == ["acme", "acme", "cpu"]
    assert "w=acme" in reasons[0]
    assert "acme has no kernel for sqr" in reasons[2]
    assert value[0] == [0, 0, 0, 81]
    assert value[1] == pytest.approx([(v * (v / 6 + 0.5)) ** 2 for v in (1, 2)] + [9, 16], rel=1e-5)


def test_the_command_line_puts_layers_on_it(site: Path) -> None:
    command = ["-m", "graphrt", "generate", "tiny-mixtral", "-p", "ROMEO:", "-n", "4", "--temp", "0"]
    assert python(site, *command, "--device", "acme", "-ngl", "2") == python(site, *command)
