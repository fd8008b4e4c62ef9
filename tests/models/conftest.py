"""The fixtures' models as GGUF files, and their expected logits."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from graphrt import dtypes
from graphrt.models.convert import convert_folder
from graphrt.models.gguf_file import GGUFFile
from graphrt.models.gguf_write import TensorToWrite, save
from graphrt.models.model import locate

FIXTURES = Path(__file__).parents[1] / "fixtures"
PEER_LOGITS = Path(__file__).parents[3] / "shared" / "data" / "peer_logits"


@dataclass(frozen=True)
class Expected:
    """Tokens, and transformers' logits of each: of the prompt at once, of the rest one by one."""

    tokens: np.ndarray  # [32] i64
    logits: np.ndarray  # [32, V] f32
    prompt: int  # tokens of the prompt

    def error(self, logits: np.ndarray) -> float:
        """Largest difference over largest value."""
        assert logits.shape == self.logits.shape
        return float(np.abs(logits - self.logits).max() / np.abs(self.logits).max())


@pytest.fixture(scope="session")
def expected() -> Callable[[str], Expected]:
    """The expected logits of a fixture."""

    def read(name: str) -> Expected:
        with np.load(FIXTURES / name / "logits.npz") as found:
            prompt, steps = found["prompt_logits"], found["step_logits"]
            return Expected(found["tokens"], np.concatenate([prompt, steps]), len(prompt))

    return read


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Converts a fixture's folder to a float32 GGUF file, once for each dialect."""
    folder = tmp_path_factory.mktemp("gguf")

    def convert(name: str, dialect: str = "mla") -> Path:
        path = folder / f"{name}-{dialect}.gguf"
        if not path.exists():
            convert_folder(FIXTURES / name, path, dtype="f32", dialect=dialect)
        return path

    return convert


@pytest.fixture(scope="session")
def peer_logits() -> Callable[[str], tuple[Path, np.ndarray]]:
    """A file and llama.cpp's logits [96, V] for it; skips where these data are absent."""

    def find(name: str) -> tuple[Path, np.ndarray]:
        path = PEER_LOGITS / f"{name}.gguf"
        if not path.exists():
            pytest.skip(f"llama.cpp's logits are not in {PEER_LOGITS}")
        return path, np.load(PEER_LOGITS / f"{name}_logits.npy")

    return find


@pytest.fixture(scope="session")
def in_float32(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes a model that comes with the package with the same values in float32."""
    folder = tmp_path_factory.mktemp("float32")

    def expand(name: str) -> Path:
        path = folder / f"{name}.gguf"
        if not path.exists():
            file = GGUFFile.open(locate(name))
            metadata = {key: value for key, value in file.metadata.items() if key != "general.architecture"}
            tensors = [TensorToWrite.of(each.name, dtypes.to_f32(each.array)) for each in file.tensors.values()]
            save(path, file.architecture, metadata, tensors)
        return path

    return expand
