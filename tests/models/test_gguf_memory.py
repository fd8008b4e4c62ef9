"""Models read into memory: the same bytes, in memory of their own, or words that say why not."""

from __future__ import annotations

import numpy as np
import pytest

import graphrt
from graphrt.errors import FormatError, PlacementError
from graphrt.models import gguf_memory
from graphrt.models.gguf_file import GGUFFile
from graphrt.models.gguf_memory import in_memory


def test_the_bytes_are_those_of_the_file_and_outlive_it(gguf, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_memory, "PIECE", 1000)
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf("deepseek2").read_bytes())
    mapped, told = GGUFFile.open(path), []
    resident = in_memory(mapped, lambda done, total: told.append((done, total)))
    assert resident.tensors.keys() == mapped.tensors.keys()
    assert (resident.path, resident.size, resident.metadata) == (mapped.path, mapped.size, mapped.metadata)
    for name, tensor in mapped.tensors.items():
        np.testing.assert_array_equal(resident.tensors[name].array, tensor.array)
    size = path.stat().st_size
    assert told[-1] == (size, size)
    assert len(told) == -(-size // 1000)
    before = {name: tensor.array.copy() for name, tensor in resident.tensors.items()}
    with path.open("r+b") as file:  # in place, as no one should: a mapping would show it
        file.write(bytes(size))
    assert all(np.array_equal(tensor.array, before[name]) for name, tensor in resident.tensors.items())


def test_a_model_gives_the_same_logits(gguf):
    options = {"backends": "reference", "n_ctx": 16}
    mapped, resident = (graphrt.load(gguf("llama"), mmap=mmap, **options) for mmap in (True, False))
    np.testing.assert_array_equal(mapped.logits([5, 6, 7]), resident.logits([5, 6, 7]))


def test_too_little_memory_is_said_before_it_is_taken(gguf, tmp_path, monkeypatch):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  9 kB\nMemAvailable:  2 kB\n")
    monkeypatch.setattr(gguf_memory, "MEMINFO", meminfo)
    size = gguf("llama").stat().st_size
    with pytest.raises(PlacementError, match=rf"{size:,} bytes to be read into memory, 2,048 are free; map the file"):
        graphrt.load(gguf("llama"), mmap=False)


def test_a_file_that_is_cut_meanwhile_is_named(gguf, tmp_path):
    path = tmp_path / "model.gguf"
    whole = gguf("llama").read_bytes()
    path.write_bytes(whole)
    mapped = GGUFFile.open(path)
    with path.open("r+b") as file:
        file.truncate(len(whole) - 100)
    with pytest.raises(FormatError, match=rf"model.gguf\] ends at byte {len(whole) - 100:,} of {len(whole):,}"):
        in_memory(mapped)
