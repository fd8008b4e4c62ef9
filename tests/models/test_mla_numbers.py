"""Numbers too large for f16: absorbed queries, attn_k_b itself, and what goes into the cache."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

import graphrt
from graphrt import ops
from graphrt.dtypes import Array
from graphrt.models.batch import Batch
from graphrt.models.gguf_file import GGUFFile
from graphrt.models.gguf_write import TensorToWrite, save

VARIANTS = ["naive", "absorbed", "flashmla2", "pp-opt"]
TOKENS = list(range(3, 20))
LARGE = 2.0**14  # times the usual: absorbed queries are then beyond f16


def rewritten(source: Path, target: Path, changes: Mapping[str, Callable[[Array], Array]]) -> Path:
    """The file with some tensors changed, by the ends of their names."""
    file = GGUFFile.open(source)
    tensors = []
    for name, tensor in file.tensors.items():
        change = next((each for end, each in changes.items() if name.endswith(end)), lambda array: array)
        tensors.append(TensorToWrite.of(name, change(tensor.array)))
    metadata = {key: value for key, value in file.metadata.items() if key != "general.architecture"}
    save(target, file.architecture, metadata, tensors)
    return target


@pytest.fixture
def large_keys(gguf, tmp_path) -> Path:
    """The same model by other numbers: latents are tiny, Wk and Wv large, attn_k_b is f16."""
    return rewritten(
        gguf("deepseek3"),
        tmp_path / "large.gguf",
        {
            "attn_k_b.weight": lambda array: (array * LARGE).astype(np.float16),
            "attn_v_b.weight": lambda array: array * np.float32(LARGE),
            "attn_kv_a_norm.weight": lambda array: array / np.float32(LARGE),
        },
    )


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("mla", VARIANTS)
@pytest.mark.parametrize("cache_type", ["f32", "bf16"])
def test_absorbed_queries_beyond_f16_stay_right(large_keys, gguf, mla, backend, cache_type, tmp_path, monkeypatch):
    monkeypatch.setattr("graphrt.models.mla.PROMPT", 5)
    options = {"mla": mla, "backends": [backend], "cache_type": cache_type, "threads": 1, "check_numerics": 1}
    usual = rewritten(
        gguf("deepseek3"), tmp_path / "usual.gguf", {"attn_k_b.weight": lambda k_b: k_b.astype(np.float16)}
    )
    right, got = (graphrt.load(path, **options).logits(TOKENS) for path in (usual, large_keys))
    assert np.abs(got - right).max() < 1e-4 * np.abs(right).max()


def test_those_queries_would_have_overflowed(large_keys):
    context = graphrt.load(large_keys, mla="absorbed", backends="reference", cache_type="f32").new_context()
    largest: list[float] = []
    context.watch = lambda node, values: largest.append(abs(values).max()) if "absorbed" in node.name else None
    context.decode(Batch.of(TOKENS))
    assert max(largest) > 65504


@pytest.mark.parametrize("mla", VARIANTS)
@pytest.mark.parametrize("dialect", ["mla", "legacy"])
def test_absorbed_products_and_scores_are_float32(gguf, mla, dialect):
    model = graphrt.load(gguf("deepseek3", dialect), mla=mla, backends="reference", cache_type="f16")
    nodes = model.new_context().graph(300, 1, 512).nodes
    products = (
        ops.mul_mat,
        ops.mul_mat_transposed,
        ops.attention,
        ops.mla_attention,
        ops.soft_max,
        ops.add,
        ops.concat,
    )
    found = [node for node in nodes if node.op in products]
    assert found
    assert {node.dtype.name for node in found} == {"f32"}
    attended = [node.srcs[0].dtype.name for node in nodes if node.op in (ops.attention, ops.mla_attention)]
    assert set(attended) <= {"f32"}


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -65504])
@pytest.mark.parametrize(("dialect", "tensor"), [("mla", "attn_k_b"), ("legacy", "attn_kv_b"), ("both", "attn_kv_b")])
def test_what_a_converter_could_not_store_is_found_at_load(gguf, tmp_path, dialect, tensor, value):
    def overflow(array: Array) -> Array:
        stored = array.astype(np.float16)
        stored.reshape(-1)[5] = value
        return stored

    path = rewritten(gguf("deepseek3", dialect), tmp_path / "over.gguf", {f"1.{tensor}.weight": overflow})
    with pytest.raises(graphrt.FormatError, match="beyond the 65504 that f16 can hold") as caught:
        graphrt.load(path, backends="reference")
    for words in (f'"blk.1.{tensor}.weight" is f16, and 1 of its', f"llama-quantize --tensor-type {tensor}=bf16"):
        assert words in str(caught.value)


def test_large_numbers_that_f16_holds_are_no_error(gguf, tmp_path):
    def enlarge(array: Array) -> Array:
        stored = array.astype(np.float16)
        stored.reshape(-1)[5] = 65472
        return stored

    path = rewritten(gguf("deepseek3"), tmp_path / "near.gguf", {"1.attn_k_b.weight": enlarge})
    assert np.isfinite(graphrt.load(path, backends="reference").logits([1, 2])).all()


def test_a_latent_beyond_the_cache_is_found_by_the_watch(gguf, tmp_path):
    def enlarge(array: Array) -> Array:
        return array * np.float32(1e5)

    path = rewritten(gguf("deepseek3"), tmp_path / "cache.gguf", {"0.attn_kv_a_norm.weight": enlarge})
    with pytest.raises(graphrt.NumericsError, match="cache_latent-0") as caught:
        graphrt.load(path, backends="reference", check_numerics=1).logits(TOKENS)
    assert "f16 holds at most 65504" in str(caught.value)
    assert "cache_type=bf16" in str(caught.value)
    assert np.isfinite(
        graphrt.load(path, backends="reference", check_numerics=1, cache_type="bf16").logits(TOKENS)
    ).all()
