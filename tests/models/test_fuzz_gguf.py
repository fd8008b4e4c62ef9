"""A GGUF file with damaged bytes ends in a graphrt error or in a valid load: never a crash, a hang or gigabytes."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphrt import dtypes
from graphrt.errors import FormatError, GraphError
from graphrt.models.gguf_file import GGUFFile
from graphrt.models.gguf_write import TensorToWrite, save
from graphrt.models.hyperparameters import DeepSeek2Hyperparameters, LlamaHyperparameters
from graphrt.models.synth import synthesise
from graphrt.models.tokenizer import Tokenizer
from graphrt.models.weights import Weights

MUTATIONS = 5000
MUTATIONS_OF_A_MODEL = 300
PEAK_BYTES = 64 << 20
LENGTHS = (0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 32, 1 << 40, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


def mutate(data: bytes, draw: random.Random) -> bytes:
    """One to three damages: flipped bits, changed, inserted or lost bytes, a cut, a huge number."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(max(1, len(changed)))
        kind = draw.randrange(6)
        if kind == 0 and changed:
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 1 and changed:
            changed[at] = draw.randrange(256)
        elif kind == 2:
            changed[at:at] = draw.randbytes(draw.randint(1, 16))
        elif kind == 3:
            del changed[at : at + draw.randint(1, 16)]
        elif kind == 4 and draw.random() < 0.3:
            del changed[at:]
        else:
            changed[at : at + 8] = struct.pack("<Q", draw.choice(LENGTHS))
    return bytes(changed)


def every_kind_of_value(path: Path) -> bytes:
    """A small file with every type of metadata and several of tensors."""
    metadata = {
        "general.alignment": 32,
        "a.bool": True,
        "a.text": "naïve",
        "a.float": 1.5,
        "a.negative": -7,
        "a.long": 1 << 40,
        "a.strings": ["one", "", "three"],
        **{
            f"a.{kind}": np.arange(3, dtype=kind)
            for kind in ("u1", "i1", "u2", "i2", "u4", "i4", "f4", "u8", "i8", "f8")
        },
        "a.flags": np.array([True, False]),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "<0x41>", "▁a", "b"],
        "tokenizer.ggml.scores": np.zeros(6, np.float32),
        "tokenizer.ggml.token_type": np.array([2, 3, 3, 6, 1, 1], np.int32),
    }
    tensors = [
        TensorToWrite.of(name, dtypes.from_f32(np.ones(shape, np.float32), dtypes.get(name)))
        for name, shape in (("f32", (3, 5)), ("bf16", (2, 2, 2)), ("q8_0", (2, 64)), ("i32", (7,)))
    ]
    save(path, "llama", metadata, tensors)
    return path.read_bytes()


def use(path: Path) -> None:
    """Open a file and touch all that is in it."""
    file = GGUFFile.open(path)
    for tensor in file.tensors.values():
        assert dtypes.shape_of(tensor.array) == tensor.shape
        tensor.array.tobytes()
    tokenizer = Tokenizer.from_metadata(file.metadata, path.name)
    tokenizer.decode(tokenizer.encode("A bab"))


def refusal(action: Callable[[], None]) -> str | None:
    """The message of graphrt's error, or None if there is none; any other exception fails the test."""
    try:
        action()
    except (FormatError, GraphError) as error:
        return str(error)
    return None


def test_damaged_files_end_in_an_error_or_a_load(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    whole = every_kind_of_value(path)
    use(path)
    refusals, peaks = [], []

    @settings(max_examples=MUTATIONS, deadline=None, derandomize=True, database=None)
    @given(st.integers(0, 2**64 - 1))
    def damaged(seed: int) -> None:
        path.write_bytes(mutate(whole, random.Random(seed)))
        tracemalloc.start()
        try:
            refusals.append(refusal(lambda: use(path)))
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()

    damaged()
    assert max(peaks) < PEAK_BYTES
    assert all(message is None or message.startswith("[") for message in refusals)
    assert len(refusals) >= MUTATIONS
    assert MUTATIONS // 20 < refusals.count(None) < MUTATIONS // 2


@pytest.mark.parametrize("preset", ["tiny-mixtral", "tiny-deepseek-v3"])
def test_damaged_models_end_in_an_error_or_a_load(tmp_path: Path, preset: str) -> None:
    path, draw = tmp_path / "model.gguf", random.Random(21)
    synthesise(preset, path, layers=2, dtype="q4_0")
    whole = path.read_bytes()
    header = whole[: min(tensor.offset for tensor in GGUFFile.open(path).tensors.values())]
    kind = {"llama": LlamaHyperparameters, "deepseek2": DeepSeek2Hyperparameters}[GGUFFile.open(path).architecture]

    def load() -> None:
        file = GGUFFile.open(path)
        hyperparameters = kind.from_file(file)
        Weights(file).take("token_embd.weight", (hyperparameters.vocabulary, hyperparameters.embedding))
        Tokenizer.from_metadata(file.metadata, path.name).encode("To be, or not")

    refusals = []
    for _ in range(MUTATIONS_OF_A_MODEL):
        path.write_bytes(mutate(header, draw) + whole[len(header) :])
        refusals.append(refusal(load))
    assert all(message is None or message.startswith("[") for message in refusals)
    assert 0 < refusals.count(None) < MUTATIONS_OF_A_MODEL
