"""llama and Mixtral against transformers and llama.cpp."""

import json

import numpy as np
import pytest

import graphrt
from graphrt.models.batch import Batch

BACKENDS = ["reference", "cpu"]
TOLERANCE = 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_logits_of_a_prompt_and_of_single_tokens_match_transformers(name, backend, gguf, expected):
    model = graphrt.load(gguf(name), backends=[backend], cache_type="f32", threads=1)
    right = expected(name)
    assert right.error(model.logits(right.tokens)) < TOLERANCE

    context = model.new_context()
    prompt = context.decode(Batch.of(right.tokens[: right.prompt], all_logits=True)).copy()
    rest = range(right.prompt, len(right.tokens))
    steps = [context.decode(Batch.of(right.tokens[at : at + 1], at)).copy() for at in rest]
    assert right.error(np.concatenate([prompt, *steps])) < TOLERANCE


def test_a_prompt_in_ubatches_gives_the_same_logits(gguf, expected):
    right = expected("mixtral")
    model = graphrt.load(gguf("mixtral"), backends="reference", cache_type="f32", n_ubatch=7)
    assert right.error(model.logits(right.tokens)) < TOLERANCE


def test_the_default_cache_type_stays_close(gguf, expected):
    right = expected("llama")
    assert right.error(graphrt.load(gguf("llama"), backends="reference").logits(right.tokens)) < 5e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_quantized_mixtral_stays_close_to_llama_cpp(backend, peer_logits):
    # llama.cpp rounds activations to Q8_0 before each product with a Q4_0 weight, which the reference does not.
    path, right = peer_logits("tiny_mixtral_q4_0")
    tokens = json.loads(path.with_name("tokens.json").read_text())
    logits = graphrt.load(path, backends=[backend], threads=1).logits(tokens)
    assert np.abs(logits - right).max() < 0.03 * np.abs(right).max()
    assert np.mean(logits.argmax(-1) == right.argmax(-1)) > 0.95


def test_nodes_bear_llama_cpps_names(gguf):
    context = graphrt.load(gguf("mixtral"), backends="reference").new_context()
    plan = context.plan(tokens=3, rows=1, cells=context.size)
    names = {node.name for node in plan.graph.nodes}
    wanted = "inp_embd attn_norm-0 Qcur-0 Kcur-0 Vcur-0 ffn_moe_topk-0 ffn_moe_out-1 l_out-1 result_norm result_output"
    assert names >= set(wanted.split())
