"""Prompts go to the context that knows most of their beginning, and give what they would give without it."""

import numpy as np
import pytest

import graphrt
from graphrt.errors import GraphError
from graphrt.models.batch import Batch

GREEDY = {"temperature": 0}
PROMPT = [5, 6, 7, 8, 9, 10]


@pytest.fixture
def load(gguf):
    def make(name="llama", **options):
        return graphrt.load(gguf(name), **{"backends": "reference", "n_ctx": 64, **options})

    return make


def run(model, prompt, **options):
    generation = model.generate(prompt, max_tokens=5, **GREEDY, **options)
    list(generation)
    return generation


@pytest.mark.parametrize("k_cache", ["roped", "unroped"])
@pytest.mark.parametrize("name", ["llama", "deepseek3"])
def test_a_longer_prompt_runs_only_what_is_new(load, name, k_cache):
    model = load(name, cache_type="f32", k_cache=k_cache)
    first = run(model, PROMPT)
    longer = [*PROMPT, *first.tokens[:3], 40, 41]
    counts = []
    decode = model.contexts.idle[0].decode
    model.contexts.idle[0].decode = lambda batch: counts.append(len(batch)) or decode(batch)
    second = run(model, longer)
    assert second.timings.reused_tokens == len(PROMPT) + 3
    assert second.timings.prompt_tokens == len(longer)
    assert counts == [2, 1, 1, 1, 1]
    assert second.tokens == run(load(name, cache_type="f32", k_cache=k_cache), longer).tokens


def test_logits_are_those_without_reuse(load):
    model = load(cache_type="f32")
    run(model, PROMPT)
    with model.contexts.lend([*PROMPT[:4], 30, 31]) as context:
        assert context.seq_pos_max(0) == 3
        assert context.cells.used == 4
        logits = context.decode(Batch.of([30, 31], 4, all_logits=True)).copy()
    np.testing.assert_allclose(logits, model.logits([*PROMPT[:4], 30, 31])[-2:], atol=1e-5)


@pytest.mark.parametrize(
    ("prompt", "reused"), [(PROMPT, 5), (PROMPT[:3], 2), ([*PROMPT[:2], 99, *PROMPT[3:]], 2), ([99, 5], 0), ([5], 0)]
)
def test_at_least_the_last_token_is_run(load, prompt, reused):
    model = load()
    run(model, PROMPT)
    assert run(model, prompt).timings.reused_tokens == reused


def test_the_context_that_knows_most_is_taken(load):
    model = load()
    prompts = [[1, 2, 3, 4, 5], [1, 2, 9, 9], [7, 7, 7]]
    generations = [model.generate(prompt, max_tokens=2, **GREEDY) for prompt in prompts]
    for generation in generations:
        next(generation)  # all at once: each has a context of its own
    for generation in generations:
        list(generation)
    assert len(model.contexts.idle) == 3
    assert run(model, [1, 2, 9, 9, 4]).timings.reused_tokens == 4
    assert run(model, [1, 2, 3, 4, 5, 6]).timings.reused_tokens == 5
    assert run(model, [8, 8]).timings.reused_tokens == 0
    assert run(model, [1, 2, 3, 4, 5, 6]).timings.reused_tokens == 5  # [8, 8] took the emptiest


def test_a_chat_runs_each_turn_only(load, monkeypatch):
    model = load(n_ctx=256)
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[me]"
    monkeypatch.setitem(model.tokenizer.vocabulary.__dict__, "chat_template", template)
    messages = [{"role": "user", "content": "who are you"}]
    run(model, messages)
    asked = len(model.tokenizer.encode(model._render(messages)))
    messages += [{"role": "me", "content": "nobody"}, {"role": "user", "content": "why"}]
    assert run(model, messages).timings.reused_tokens >= asked - 1


def test_moved_tokens_are_not_taken_for_a_prompt(load):
    """After a context shift only what was kept stands as a run of it would have it."""
    model = load(n_ctx=16)
    generation = model.generate(PROMPT, max_tokens=20, context_shift=True, keep=3, **GREEDY)
    list(generation)
    cells = model.contexts.idle[0].cells
    same = cells.tokens[cells.of(0)].tolist()
    assert run(model, same[:10]).timings.reused_tokens == 3


def test_an_interrupted_prompt_leaves_what_was_run(load):
    model = load(n_ubatch=4)

    def interrupt(done, total):
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, list(range(20)), progress=interrupt)
    generation = run(model, list(range(20)))
    assert generation.timings.reused_tokens == 8
    assert generation.tokens == run(load(n_ubatch=4), list(range(20))).tokens


def test_a_prompt_that_does_not_fit_costs_nothing(load):
    model = load(n_ctx=16)
    run(model, PROMPT)
    with pytest.raises(GraphError, match="n_ctx is 16 tokens, 0 are in use, 17 more asked for"):
        run(model, [*PROMPT, *range(11)])
    assert run(model, PROMPT).timings.reused_tokens == 5


def test_progress_is_told_of_a_prompt_of_several_ubatches(load):
    told = []
    run(load(n_ubatch=4), PROMPT, progress=lambda *numbers: told.append(numbers))
    assert told == [(0, 6), (4, 6), (6, 6)]
    told.clear()
    run(load(n_ubatch=8), PROMPT, progress=lambda *numbers: told.append(numbers))
    assert told == []
