"""Files that graphrt and llama.cpp both read, and the tables of what they differ in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

PRESETS = ("tiny-llama", "tiny-mixtral", "tiny-deepseek2", "tiny-deepseek-v2", "tiny-deepseek-v3")
TRAINED = {"trained deepseek2": "tiny-deepseek2", "trained mixtral": "tiny-mixtral"}
MODELS = (*PRESETS, *TRAINED)
KINDS = ("f32", "f16", "q8_0", "q4_0", "q4_k")
TABLES = {
    "logits": (
        "graphrt and llama.cpp on the same files: error between them, and of each against exact",
        ("model", "type", "run as", "error", "graphrt", "llama.cpp", "largest", "best token", "greedy tokens"),
    ),
    "perplexity": (
        "perplexity on held-out text; exact is the same values in f32",
        ("model", "type", "graphrt", "llama.cpp", "exact", "graphrt / llama.cpp - 1"),
    ),
}
ROWS = pytest.StashKey[dict[str, list[tuple[str, ...]]]]()


class Files:
    """Models in a folder: with random weights, or trained; in f32, or quantized by llama.cpp."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, name: str, kind: str) -> Path:
        """The model in that type."""
        if kind != "f32":
            return self._quantized(self.find(name, "f32"), kind, f"{name}-{kind}")
        if name in TRAINED:
            from graphrt.models.model import locate

            return self._quantized(locate(TRAINED[name]), "f32", f"{name}-f32")
        return self._random(name)

    def exact(self, path: Path) -> Path:
        """The same values in f32, so that nothing is rounded on the way."""
        return self._quantized(path, "f32", f"{path.stem}-exact")

    def _random(self, preset: str) -> Path:
        from graphrt.models.synth import synthesise

        path = self.folder / f"{preset}-f32.gguf"
        if not path.exists():
            synthesise(preset, path, dtype="f32", seed=5)
            # llama.cpp ranks groups of experts by their best two, and so does graphrt where a file says nothing else.
            path.write_bytes(path.read_bytes().replace(b"graphrt.expert_group_score", b"ignored.expert_group_score"))
        return path

    def _quantized(self, source: Path, kind: str, stem: str) -> Path:
        from tests.peers import llama_cpp_peer

        path = self.folder / f"{stem}.gguf"
        if not path.exists():
            llama_cpp_peer.quantize(source, path, kind)
        return path


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Makes the models that are compared."""
    return Files(tmp_path_factory.mktemp("peers"))


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Adds a row to the table of logits that is printed at the end."""
    return _adder(request.config, "logits")


@pytest.fixture
def perplexity_report(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Adds a row to the table of perplexities that is printed at the end."""
    return _adder(request.config, "perplexity")


def _adder(config: pytest.Config, table: str) -> Callable[..., None]:
    rows = config.stash.setdefault(ROWS, {}).setdefault(table, [])
    return lambda *cells: rows.append(tuple(map(str, cells)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the tables."""
    for table, rows in config.stash.get(ROWS, {}).items():
        title, header = TABLES[table]
        widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
        terminalreporter.section(title)
        for row in (header, *rows):
            terminalreporter.write_line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
