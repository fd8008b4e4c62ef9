"""Layers: cli -> models -> ops -> core, and backends -> ops -> core, as pyproject.toml states them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return run("-c", program, "--no-logo", "--no-cache", "--config", str(ROOT / "pyproject.toml"), cwd=tree)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The package with its links followed, which import-linter does not do by itself."""
    shutil.copytree(ROOT / "graphrt", tmp_path / "graphrt", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_layers_hold(tree: Path) -> None:
    result = lint(tree)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("tensor.py", "import graphrt.ops"),
        ("ops/__init__.py", "import graphrt.models"),
        ("models/__init__.py", "import graphrt.backends.reference"),
        ("backends/__init__.py", "import graphrt.cli"),
    ],
)
def test_an_import_against_the_layers_is_found(tree: Path, file: str, line: str) -> None:
    path = tree / "graphrt" / file
    path.write_text(f"{path.read_text()}\n{line}\n")
    assert lint(tree).returncode != 0


@pytest.mark.parametrize("folder", ["ops", "backends", "models"])
def test_a_folder_imported_by_its_own_name_gives_a_hint(folder: str) -> None:
    result = run("-c", f"import {folder}", cwd=ROOT)
    assert result.returncode != 0
    assert f"from graphrt import {folder}" in result.stderr


def test_import_is_quick_and_light() -> None:
    """`import graphrt` and its ops load none of the heavy packages, which are imported where they are used."""
    heavy = ["numba", "llvmlite", "gguf", "tokenizers", "jinja2", "rich", "typer", "safetensors"]
    program = f"import sys, graphrt, graphrt.ops; print([name for name in {heavy} if name in sys.modules])"
    result = run("-c", program, cwd=ROOT)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr
