"""Models read into memory: the same bytes, in memory of their own, interleaved or not, or words that say why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import graphrt
from graphrt import dtypes
from graphrt.errors import FormatError, PlacementError
from graphrt.models import gguf_memory
from graphrt.models.gguf_file import GGUFFile
from graphrt.models.gguf_memory import in_memory
from graphrt.models.synth import synthesise
from graphrt.testing import normalised_error


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


# -- interleaved on the way -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """A file of two layers of a preset in q8_0."""
    folder = tmp_path_factory.mktemp("quantized")

    def made(preset: str) -> Path:
        path = folder / f"{preset}.gguf"
        return path if path.exists() else synthesise(preset, path, layers=2, dtype="q8_0")

    return made


def interleaved_names(model: graphrt.models.Model) -> set[str]:
    return {name for name, tensor in model.file.tensors.items() if tensor.dtype is not None and tensor.dtype.rows > 1}


def test_repacked_tensors_hold_the_same_values_in_as_many_bytes(quantized, monkeypatch):
    monkeypatch.setattr(gguf_memory, "REPACKED", 1)  # the fewest rows at a time
    mapped, told = GGUFFile.open(quantized("tiny-deepseek2")), []
    resident = in_memory(mapped, lambda done, total: told.append((done, total)), lambda tensor: "ffn" in tensor.name)
    moved = {name: tensor for name, tensor in resident.tensors.items() if tensor.dtype.rows > 1}
    assert moved
    assert all("ffn" in name for name in moved)
    for name, tensor in resident.tensors.items():
        assert tensor.nbytes == tensor.array.nbytes == mapped.tensors[name].nbytes
        assert tensor.type_name == tensor.dtype.name
        np.testing.assert_array_equal(dtypes.to_f32(tensor.array), dtypes.to_f32(mapped.tensors[name].array))
    total = mapped.size + sum(tensor.nbytes for tensor in moved.values())
    assert told[-1] == (total, total)


@pytest.mark.parametrize("name", ["tiny-mixtral", "tiny-deepseek2", "tiny-deepseek-v3"])
def test_a_repacked_model_gives_the_same_logits(quantized, name):
    mapped, repacked = (graphrt.load(quantized(name), repack=repack, backends="reference") for repack in (False, True))
    np.testing.assert_array_equal(mapped.logits([5, 6, 7]), repacked.logits([5, 6, 7]))
    assert not interleaved_names(mapped)
    moved = interleaved_names(repacked)
    assert {"output.weight", "blk.0.attn_output.weight", "blk.1.ffn_down_exps.weight"} <= moved
    assert not any("token_embd" in each or "_b.weight" in each for each in moved if "q_b" not in each)


def test_weights_that_leave_the_host_in_some_phase_are_not_repacked(quantized):
    rules = ["down_exps=sim", "gate_exps@prompt=sim"]
    model = graphrt.load(quantized("tiny-mixtral"), backends=["sim", "cpu"], overrides=rules, repack=True)
    moved = interleaved_names(model)
    assert any("up_exps" in name for name in moved)
    assert not any("down_exps" in name or "gate_exps" in name for name in moved)
    usual = graphrt.load(quantized("tiny-mixtral"), backends=["sim", "cpu"], overrides=rules)
    assert normalised_error(model.logits([5, 6, 7]), usual.logits([5, 6, 7])) < 1e-4


def test_layers_of_a_device_are_not_repacked(quantized):
    moved = interleaved_names(
        graphrt.load(quantized("tiny-mixtral"), backends=["sim", "cpu"], gpu_layers=2, repack=True)
    )
    assert any(name.startswith("blk.0.") for name in moved)
    assert not any(name.startswith(("blk.1.", "output.")) for name in moved)
