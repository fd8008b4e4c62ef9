"""The mixtures of types in file types: those of llama-quantize, tensor by tensor."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphrt.models.file_types import FILE_TYPES
from graphrt.models.gguf_file import GGUFFile
from graphrt.models.presets import PRESETS
from graphrt.models.synth import describe, synthesise

llama_cpp_peer = pytest.importorskip("tests.peers.llama_cpp_peer", reason="needs llama-cpp-python: make test-peers")
pytestmark = pytest.mark.peers

SMALL = {"hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 256, "vocab_size": 360}
LLAMA, MIXTRAL = PRESETS["tiny-llama"] | SMALL, PRESETS["tiny-mixtral"] | SMALL
LATENTS = PRESETS["tiny-deepseek2"] | SMALL | {"n_routed_experts": 4}
DEEP, FLAT = {"num_hidden_layers": 17}, {"num_hidden_layers": 8}  # so that an eighth, or a sixteenth, is a layer
MODELS = {
    "one head of values for four": (LLAMA | DEEP | {"num_key_value_heads": 1}, "mla"),
    "two heads of values for four": (LLAMA | DEEP, "mla"),
    "tied": (LLAMA | FLAT | {"tie_word_embeddings": True}, "mla"),
    "eight experts": (MIXTRAL | FLAT, "mla"),
    "four experts": (MIXTRAL | FLAT | {"num_local_experts": 4}, "mla"),
    "latents": (LATENTS | FLAT, "mla"),
    "latents, legacy": (LATENTS | FLAT, "legacy"),
    "odd rows": (LLAMA | FLAT | {"intermediate_size": 480, "hidden_size": 224, "head_dim": 56}, "mla"),
}
MIXED = [name for name, each in FILE_TYPES.items() if each.is_mixed]


@pytest.fixture(params=MODELS)
def preset(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """The name of a model, which is a preset for now, and its dialect."""
    config, dialect = MODELS[request.param]
    monkeypatch.setitem(PRESETS, request.param, config)
    return request.param, dialect


def test_types_are_llama_quantizes(preset: tuple[str, str], tmp_path: Path) -> None:
    name, dialect = preset
    source = synthesise(name, tmp_path / "source.gguf", dtype="f32", dialect=dialect)
    different = {}
    for file_type in MIXED:
        target = tmp_path / "target.gguf"
        llama_cpp_peer.quantize(source, target, file_type, threads=2)
        quantized = GGUFFile.open(target)
        assert quantized.metadata["general.file_type"] == FILE_TYPES[file_type].number
        theirs = {key: tensor.type_name for key, tensor in quantized.tensors.items()}
        ours = {
            key: tensor.type_name for key, tensor in describe(name, dtype=file_type, dialect=dialect).tensors.items()
        }
        assert ours.keys() == theirs.keys()
        different |= {(file_type, key): (ours[key], theirs[key]) for key in ours if ours[key] != theirs[key]}
    assert not different
