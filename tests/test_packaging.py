"""What is installed: the packages that pyproject.toml lists, and a wheel that holds every file."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
NOT_SOURCE = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info")


def run(*arguments: object, cwd: Path) -> str:
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, so that nothing is built inside the checkout."""
    copy = tmp_path_factory.mktemp("source")
    for name in ["graphrt", "ops", "backends", "models"]:
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=NOT_SOURCE)
    for name in ["pyproject.toml", "README.md", "LICENSE"]:
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    """The wheel, made from the source archive."""
    run("-m", "build", "--no-isolation", "--outdir", source / "dist", source, cwd=source)
    (path,) = (source / "dist").glob("*.whl")
    return path


def installed_files(source: Path) -> set[str]:
    """Every file of the package as an installed path, links followed."""
    folder = source / "graphrt"
    return {
        f"graphrt/{path.relative_to(folder).as_posix()}"
        for top in [folder, *(folder / link for link in ("ops", "backends", "models"))]
        for path in top.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_packages_listed_are_those_on_disk(source: Path) -> None:
    folders = {path.rpartition("/")[0] for path in installed_files(source) if path.endswith(".py")}
    assert sorted(SETTINGS["packages"]) == sorted(folder.replace("/", ".") for folder in folders)


def test_every_package_has_an_init(source: Path) -> None:
    files = installed_files(source)
    missing = [name for name in SETTINGS["packages"] if f"{name.replace('.', '/')}/__init__.py" not in files]
    assert missing == []


def test_wheel_holds_every_file(source: Path, wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == installed_files(source)


def test_wheel_has_licence_command_and_backends(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (points,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    text = archive.read(points).decode()
    assert "graphrt = graphrt.cli:main" in text
    assert "[graphrt.backends]" in text
    assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())


def test_installed_wheel_runs(wheel: Path, tmp_path: Path) -> None:
    run("-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", tmp_path, wheel, cwd=tmp_path)
    program = (
        "import numpy as np, graphrt; x = graphrt.input('x', (2, 3)); "
        "print(graphrt.__file__, graphrt.Scheduler(['reference']).run(x + x, x=np.ones((2, 3), np.float32)).sum())"
    )
    assert run("-c", program, cwd=tmp_path).split() == [str(tmp_path / "graphrt" / "__init__.py"), "12.0"]
