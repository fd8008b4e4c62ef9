"""A model whose output weight is its embedding: one set of bytes under two names, each of which is placed by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import graphrt
from graphrt.backends.sim import SimBackend
from graphrt.cli.app import run
from graphrt.models.gguf_file import GGUFFile
from graphrt.models.gguf_write import TensorToWrite, save
from graphrt.models.synth import synthesise
from graphrt.schedule import Schedule

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
TOKENS = [5, 300, 41, 7]


@pytest.fixture(scope="module", params=["tiny-mixtral", "tiny-deepseek2"])
def tied(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthesised model without output.weight."""
    folder = tmp_path_factory.mktemp("tied")
    file = GGUFFile.open(synthesise(request.param, folder / "own.gguf", layers=2, dtype="f32", seed=3))
    metadata = {key: value for key, value in file.metadata.items() if key != "general.architecture"}
    kept = [TensorToWrite.of(tensor.name, tensor.array) for tensor in file.tensors.values() if tensor.name != OUTPUT]
    save(folder / "tied.gguf", file.architecture, metadata, kept)
    return folder / "tied.gguf"


def decode_schedule(model: graphrt.Model) -> Schedule:
    context = model.new_context()
    return context.scheduler.schedule(context.graph(1, rows=1, cells=128))


def homes(schedule: Schedule) -> dict[str, str]:
    return {leaf.name: home.backend.name for leaf, home in schedule.placements.homes.items()}


def test_the_output_shares_the_embeddings_bytes(tied: Path) -> None:
    model = graphrt.load(tied, backends="cpu", threads=1, n_ctx=128, cache_type="f32")
    decoder = model.decoder
    assert (decoder.embedding.name, decoder.output.name) == (EMBEDDING, OUTPUT)
    assert decoder.output.data is decoder.embedding.data
    resident = decode_schedule(model).resident("host")
    assert sum(leaf.nbytes for leaf in resident if leaf.role == "weight") == sum(
        tensor.nbytes for tensor in model.file.tensors.values()
    )


@pytest.mark.parametrize("options", [{"gpu_layers": 1}, {"gpu_layers": 99}, {"overrides": [r"^output\.=sim"]}])
def test_the_output_goes_to_the_device_and_the_embedding_stays(tied: Path, options: dict[str, object]) -> None:
    model = graphrt.load(tied, backends=[SimBackend(), "cpu"], threads=1, n_ctx=128, cache_type="f32", **options)
    schedule = decode_schedule(model)
    assert (homes(schedule)[EMBEDDING], homes(schedule)[OUTPUT]) == ("cpu", "sim")
    nodes = {node.name: placement.backend.name for node, placement in schedule.placements.nodes.items()}
    assert (nodes["inp_embd"], nodes["result_output"]) == ("cpu", "sim")
    expected = graphrt.load(tied, backends="cpu", threads=1, n_ctx=128, cache_type="f32").logits(TOKENS)
    np.testing.assert_allclose(model.logits(TOKENS), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_a_device_that_holds_both_holds_the_bytes_once(tied: Path) -> None:
    device = SimBackend()
    model = graphrt.load(tied, backends=[device, "cpu"], overrides=[".=sim"], threads=1, n_ctx=128, cache_type="f32")
    resident = {leaf.name for leaf in decode_schedule(model).resident("sim")}
    assert len(resident & {EMBEDDING, OUTPUT}) == 1
    expected = graphrt.load(tied, backends="cpu", threads=1, n_ctx=128, cache_type="f32").logits(TOKENS)
    np.testing.assert_allclose(model.logits(TOKENS), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    weights = sum(tensor.nbytes for tensor in model.file.tensors.values())
    told = next(memory for memory in decode_schedule(model).explain().memories if memory.name == "sim")
    assert weights <= told.resident_bytes < weights + model.decoder.embedding.nbytes


def test_inspect_shows_it(tied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(["inspect", str(tied), "--graph", "--device", "sim", "-ngl", "1"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert f"home of {OUTPUT} f32[" in out
    assert f"= get_rows({EMBEDDING} f32[" in out
