"""Loading, names, options and the errors of bad files."""

import gguf as gguf_package
import numpy as np
import pytest

import graphrt
from graphrt.errors import FormatError, GraphError, SettingsError
from graphrt.models.batch import Batch
from graphrt.models.gguf_file import GGUFFile
from graphrt.models.model import NAMES


def rewrite(source, target, *, metadata=(), tensors=()):
    """A copy of a GGUF file with metadata changed, and tensors dropped (None) or replaced."""
    file, changes, arrays = GGUFFile.open(source), dict(metadata), dict(tensors)
    writer = gguf_package.GGUFWriter(target, changes.pop("general.architecture", file.architecture))
    for key, value in {**file.metadata, **changes}.items():
        if key == "general.architecture" or key.startswith("tokenizer"):
            continue
        add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        add[type(value)](key, value)
    for name, stored in file.tensors.items():
        array = arrays.get(name, stored.array)
        if array is not None:
            writer.add_tensor(name, np.array(array))
    for name in arrays.keys() - file.tensors.keys():
        writer.add_tensor(name, arrays[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.mark.parametrize("name", NAMES)
def test_the_models_of_the_package_write_text(name):
    model = graphrt.load(name, backends="reference", n_ctx=64)
    assert len("".join(model.generate("ROMEO:", max_tokens=4, temperature=0))) > 3


def test_tokens_and_text(gguf):
    model = graphrt.load(gguf("mixtral"), backends="reference")
    ids = model.tokenize("the lord")
    assert model.detokenize(ids) == "the lord"
    assert model.tokenize("the lord", add_special=True) == [model.tokenizer.vocabulary.bos, *ids]
    assert model.logits(ids).shape == (len(ids), 320)
    assert model.logits(ids).dtype == np.float32


def test_logits_are_of_a_fresh_context(gguf):
    model = graphrt.load(gguf("mixtral"), backends="reference")
    first = model.logits([1, 2, 3])
    model.logits([9, 8])
    np.testing.assert_array_equal(model.logits([1, 2, 3]), first)


def test_the_context_length_is_the_files_at_most_4096(gguf):
    assert graphrt.load(gguf("deepseek2"), backends="reference").n_ctx == 2560
    assert graphrt.load(gguf("deepseek2"), backends="reference", n_ctx=9000).new_context().size == 9000


def test_backends_and_overrides(gguf):
    model = graphrt.load(gguf("mixtral"), overrides="exps=reference", threads=1)
    plan = model.new_context().plan(tokens=1, rows=1, cells=128)
    experts = [node for node in plan.graph.nodes if node.op.name == "mul_mat_id"]
    assert experts
    assert {plan.placements[node].reason for node in experts} == {'override "exps=reference"'}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mla": "sparse"}, 'unknown mla "sparse"; choose one of auto, naive, absorbed, pp-opt, flashmla2'),
        ({"k_cache": "turned"}, 'unknown k_cache "turned"; choose roped or unroped'),
        ({"mla": "pp-opt", "k_cache": "unroped"}, "pp-opt multiplies with keys as the cache has them"),
        ({"cache_type": "q4_k"}, 'unknown cache_type "q4_k"; choose one of f32'),
        ({"n_ubatch": 0}, "n_ubatch is 0; it must be at least 1"),
        ({"n_ctx": 0}, "n_ctx is 0; it must be at least 1"),
        ({"n_ctx": 1 << 40}, "n_ctx is 1099511627776; it must be at least 1 and below 2147483648"),
        ({"atention": "naive"}, r"option atention; known: n_ctx, threads, cache_type, k_cache, kv_file, mla, n_ubatch"),
        ({"backends": "abacus"}, 'no backend is called "abacus"'),
    ],
)
def test_wrong_options(gguf, options, message):
    with pytest.raises(SettingsError, match=message):
        graphrt.load(gguf("deepseek2"), **{"backends": "reference", **options})


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FormatError, match=r"there is no file .*none.gguf.*tiny-deepseek2, tiny-mixtral"):
        graphrt.load(tmp_path / "none.gguf")


def test_an_unknown_architecture(gguf, tmp_path):
    path = rewrite(gguf("llama"), tmp_path / "odd.gguf", metadata={"general.architecture": "gpt9"})
    with pytest.raises(FormatError, match=r'\[odd.gguf\] unknown architecture "gpt9"; graphrt runs llama, deepseek2'):
        graphrt.load(path)


def test_a_missing_tensor(gguf, tmp_path):
    path = rewrite(gguf("deepseek2"), tmp_path / "hole.gguf", tensors={"blk.1.ffn_down_exps.weight": None})
    with pytest.raises(FormatError, match=r'\[hole.gguf\] no tensor "blk.1.ffn_down_exps.weight" \(16, 64, 32\)'):
        graphrt.load(path)


def test_a_misshapen_tensor(gguf, tmp_path):
    wrong = {"blk.0.attn_norm.weight": np.ones(32, np.float32)}
    path = rewrite(gguf("llama"), tmp_path / "bent.gguf", tensors=wrong)
    with pytest.raises(FormatError, match=r'\[bent.gguf\] tensor "blk.0.attn_norm.weight" has shape \(32,\).*\(64,\)'):
        graphrt.load(path)


def test_a_tensor_that_the_model_has_no_place_for(gguf, tmp_path):
    more = {"blk.0.attn_q_norm.weight": np.ones(16, np.float32)}
    path = rewrite(gguf("llama"), tmp_path / "more.gguf", tensors=more)
    with pytest.raises(FormatError, match=r'1 tensors have no place in .*"blk.0.attn_q_norm.weight"'):
        graphrt.load(path)


def test_experts_whose_gate_and_up_weights_are_one_tensor(gguf, tmp_path):
    source = gguf("deepseek3")
    tensors = GGUFFile.open(source).tensors
    fused = {}
    for name in [name for name in tensors if name.endswith("ffn_gate_exps.weight")]:
        up = name.replace("gate", "up")
        fused |= {name: None, up: None}
        fused[name.replace("gate", "gate_up")] = np.concatenate([tensors[name].array, tensors[up].array], axis=1)
    assert fused
    path = rewrite(source, tmp_path / "fused.gguf", tensors=fused)
    separate, joined = (graphrt.load(file, backends="reference").logits([1, 2, 3]) for file in (source, path))
    np.testing.assert_allclose(joined, separate, atol=1e-6)


def test_biases_of_the_attention(gguf, tmp_path):
    random = np.random.default_rng(0)
    width = {"q": 128, "k": 64, "v": 64, "output": 64}
    zero = {f"blk.0.attn_{name}.bias": np.zeros(size, np.float32) for name, size in width.items()}
    some = {name: random.normal(size=len(bias)).astype(np.float32) for name, bias in zero.items()}
    source = gguf("llama")
    plain = graphrt.load(source, backends="reference").logits([1, 2])
    with_zero, with_some = (
        graphrt.load(rewrite(source, tmp_path / f"{i}.gguf", tensors=biases), backends="reference").logits([1, 2])
        for i, biases in enumerate([zero, some])
    )
    np.testing.assert_allclose(with_zero, plain, atol=1e-6)
    assert np.abs(with_some - plain).max() > 0.1


def test_batches_that_cannot_be(gguf):
    context = graphrt.load(gguf("llama"), backends="reference").new_context()
    with pytest.raises(GraphError, match="tokens must be a row of whole numbers"):
        Batch.of([0.5])
    for field, value, message in [
        ("pos", np.array([-1]), "position -1 is out of range"),
        ("seq_ids", np.array([64]), "sequence 64 is out of range"),
    ]:
        fields = {"tokens": np.array([1]), "pos": np.array([0]), "seq_ids": np.array([0])}
        with pytest.raises(GraphError, match=message):
            context.decode(Batch(**{**fields, field: value}, want_logits=np.array([True])))
    assert context.cells.used == 0


def test_a_failed_run_leaves_no_token_behind(gguf, monkeypatch):
    context = graphrt.load(gguf("llama"), backends="reference").new_context()
    batch = Batch.of([1, 2, 3])
    right = context.decode(batch).copy()
    context.clear()

    def interrupted():
        assert context.cells.used == 3
        raise KeyboardInterrupt

    step = next(iter(context._steps.values()))
    execute = step.execute
    monkeypatch.setattr(step, "execute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        context.decode(batch)
    assert context.cells.used == 0
    monkeypatch.setattr(step, "execute", execute)
    np.testing.assert_array_equal(context.decode(batch), right)


@pytest.mark.parametrize("name", ["llama", "mixtral", "deepseek2_lite", "deepseek3"])
def test_ubatches_without_logits_only_fill_the_cache(name, gguf):
    tokens = list(range(3, 23))
    model = graphrt.load(gguf(name), backends="reference", cache_type="f32", n_ubatch=6)
    context = model.new_context()
    last = context.decode(Batch.of(tokens))
    assert last.shape == (1, 320)
    np.testing.assert_allclose(last[0], model.logits(tokens)[-1], atol=1e-4)
    filling = context.plan(tokens=6, rows=0, cells=context.size)
    names = {node.name for node in filling.graph.nodes}
    last_layer = len(model.decoder.layers) - 1
    assert f"kqv-{last_layer - 1}" in names
    assert not {f"kqv-{last_layer}", "result_output"} & names


def test_a_context_does_not_keep_plans_without_end(gguf, monkeypatch):
    monkeypatch.setattr("graphrt.models.context.MAX_PLANS", 3)
    context = graphrt.load(gguf("llama"), backends="reference").new_context()
    kept = []
    for count in range(1, 8):
        context.clear()
        context.decode(Batch.of([1] * count))
        kept.append(len(context._steps))
    assert kept == [1, 2, 3, 1, 2, 3, 1]
    assert len(context.scheduler._plans) == 1


@pytest.mark.parametrize("tokens", [5, 8, 19])
def test_prepare_compiles_all_that_a_prompt_and_the_next_token_need(gguf, monkeypatch, tokens):
    context = graphrt.load(gguf("llama"), backends="reference", n_ubatch=8).new_context()
    context.prepare(tokens)

    def unexpected(*numbers):
        raise AssertionError(f"compiled for {numbers} after prepare")

    monkeypatch.setattr(context, "plan", unexpected)
    context.decode(Batch.of([1] * tokens))
    context.decode(Batch.of([1], tokens))
