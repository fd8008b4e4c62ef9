"""DeepSeek-V2-Lite, V2 and V3, in all dialects and with all ways to attend, against transformers and llama.cpp."""

import json

import numpy as np
import pytest

import graphrt
from graphrt import ops
from graphrt.models.batch import Batch
from graphrt.models.deepseek2 import VARIANTS

BACKENDS = ["reference", "cpu"]
DIALECTS = ["legacy", "both", "mla"]
MODELS = ["deepseek2_lite", "deepseek2", "deepseek3"]
TOLERANCE = 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mla", VARIANTS)
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", MODELS)
def test_logits_of_a_prompt_and_of_single_tokens_match_transformers(name, dialect, mla, backend, gguf, expected):
    path = gguf(name, dialect)
    model = graphrt.load(path, backends=[backend], mla=mla, cache_type="f32", threads=1)
    right = expected(name)
    assert right.error(model.logits(right.tokens)) < TOLERANCE

    context = model.new_context()
    prompt = context.decode(Batch.of(right.tokens[: right.prompt], all_logits=True)).copy()
    rest = range(right.prompt, len(right.tokens))
    steps = [context.decode(Batch.of(right.tokens[at : at + 1], at)).copy() for at in rest]
    assert right.error(np.concatenate([prompt, *steps])) < TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mla", VARIANTS)
def test_a_float32_file_gives_llama_cpps_logits(mla, backend, peer_logits):
    path, right = peer_logits("tiny_ds2_small_legacy_f32")
    tokens = json.loads(path.with_name("tokens.json").read_text())
    logits = graphrt.load(path, backends=[backend], mla=mla, cache_type="f32", threads=1).logits(tokens)
    assert np.abs(logits - right).max() < 1e-5 * np.abs(right).max()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mla", VARIANTS)
def test_a_q8_0_file_stays_close_to_llama_cpp(mla, backend, peer_logits):
    # llama.cpp rounds activations to Q8_0: with these random weights, noise of 1e-6 before that rounding alone moves
    # the logits by 0.012. Where two experts are almost equal, it chooses another one.
    path, right = peer_logits("tiny_ds2_mla_q8_0")
    tokens = json.loads(path.with_name("tokens.json").read_text())
    logits = graphrt.load(path, backends=[backend], mla=mla, threads=1).logits(tokens)
    error = np.abs(logits - right).max(axis=-1) / np.abs(right).max()
    assert np.median(error) < 0.02
    assert error.max() < 0.1


@pytest.mark.parametrize("mla", VARIANTS)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_no_weight_is_converted(dialect, mla, gguf):
    """Every product reads the file's own bytes: its weight is a leaf or a view of one, and none is copied."""
    context = graphrt.load(gguf("deepseek3", dialect), backends="reference", mla=mla).new_context()
    plan = context.plan(tokens=3, rows=1, cells=256)
    reading = [node for node in plan.graph.nodes for src in node.srcs if src is not None and src.root.role == "weight"]
    products = (ops.mul_mat, ops.mul_mat_transposed, ops.mul_mat_id, ops.mla_attention)
    assert sum(node.op in products for node in reading) > 20
    assert {node.op.name for node in reading if node.op not in products and node.op.kind != "view"} <= {
        "rms_norm",
        "get_rows",
        "add",
    }


def test_the_latent_cache_is_smaller(gguf):
    latent, naive = (
        graphrt.load(gguf("deepseek3"), backends="reference", mla=mla).new_context().cache.nbytes
        for mla in ("absorbed", "naive")
    )
    heads, latent_width, key_and_value = 4, 64 + 16, (32 + 16) + 32
    assert naive / latent == heads * key_and_value / latent_width
