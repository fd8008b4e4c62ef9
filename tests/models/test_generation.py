"""Generation: what comes out, why it ends, what it costs."""

from itertools import pairwise
from time import thread_time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import graphrt
from graphrt import Plan
from graphrt.errors import FormatError, GraphError, SettingsError
from graphrt.models.generation import StopStrings
from graphrt.models.model import Model
from graphrt.models.sampling import Sampler

GREEDY = {"temperature": 0}
PROMPT = [5, 6, 7, 8]


@pytest.fixture(scope="module")
def model(gguf) -> Model:
    return graphrt.load(gguf("llama"), backends="reference", n_ctx=64)


def test_greedy_tokens_are_those_of_the_logits(model):
    generation = model.generate(PROMPT, max_tokens=6, **GREEDY)
    text = "".join(generation)
    tokens = list(PROMPT)
    for token in generation.tokens:
        assert token == model.logits(tokens)[-1].argmax()
        tokens.append(token)
    assert text == model.detokenize(generation.tokens)
    assert generation.finish_reason == "max_tokens"


def test_timings_count_the_tokens(model):
    generation = model.generate(PROMPT, max_tokens=6, **GREEDY)
    assert generation.finish_reason == "running"
    list(generation)
    timings = generation.timings
    assert (timings.prompt_tokens, timings.decoded_tokens, len(generation.tokens)) == (4, 5, 6)
    assert timings.prompt_rate > 0
    assert timings.decode_rate > 0


def test_no_tokens_asked_for(model):
    generation = model.generate(PROMPT, max_tokens=0)
    assert list(generation) == []
    assert generation.finish_reason == "max_tokens"


def test_generation_ends_when_the_context_is_full(model):
    generation = model.generate(PROMPT, temperature=1.0, seed=0)
    list(generation)
    # Every cell is in use, and the logits of the last gave one more token.
    assert generation.finish_reason == "context full"
    assert len(PROMPT) + len(generation.tokens) == model.n_ctx + 1


def test_generation_ends_at_an_end_token(model, monkeypatch):
    generation = model.generate(PROMPT, max_tokens=20, **GREEDY)
    list(generation)
    end = generation.tokens[-1]
    monkeypatch.setitem(model.tokenizer.vocabulary.__dict__, "end_of_generation", frozenset({end}))
    ended = model.generate(PROMPT, max_tokens=20, **GREEDY)
    list(ended)
    assert ended.tokens == generation.tokens[: generation.tokens.index(end)]
    assert ended.finish_reason == "end token"


@pytest.mark.parametrize("temperature", [0, 1])
def test_an_end_token_that_is_ignored_is_not_chosen(model, monkeypatch, temperature):
    options = {"max_tokens": 20, "temperature": temperature, "seed": 3}
    generation = model.generate(PROMPT, **options)
    list(generation)
    ends = frozenset(generation.tokens)
    monkeypatch.setitem(model.tokenizer.vocabulary.__dict__, "end_of_generation", ends)
    going_on = model.generate(PROMPT, ignore_eos=True, **options)
    list(going_on)
    assert going_on.finish_reason == "max_tokens"
    assert not ends & set(going_on.tokens)


def test_generation_ends_before_a_stop_string(model):
    text = "".join(model.generate(PROMPT, max_tokens=20, **GREEDY))
    stop = text[5:8]
    generation = model.generate(PROMPT, max_tokens=20, stop=[stop], **GREEDY)
    assert "".join(generation) == text[: text.index(stop)]
    assert generation.finish_reason == "stop string"


def test_two_generations_at_once_do_not_disturb_each_other(model):
    alone = list(model.generate(PROMPT, max_tokens=5, **GREEDY))
    one, other = (model.generate(PROMPT, max_tokens=5, **GREEDY) for _ in range(2))
    together = [(next(one), next(other)) for _ in range(len(alone))]
    assert together == [(piece, piece) for piece in alone]


def test_a_seed_repeats_the_text(model):
    first, again, different = (
        list(model.generate(PROMPT, max_tokens=20, temperature=1.5, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again != different


def test_a_context_is_given_back_when_a_generation_is_closed(gguf):
    model = graphrt.load(gguf("llama"), backends="reference")
    generation = model.generate(PROMPT, **GREEDY)
    next(generation)
    generation.close()
    contexts = {id(context) for context in model.contexts.idle}
    list(model.generate(PROMPT, max_tokens=2, **GREEDY))
    assert {id(context) for context in model.contexts.idle} == contexts
    assert len(contexts) == 1


def test_a_prompt_longer_than_the_context(model):
    with pytest.raises(GraphError, match=r"n_ctx is 64 tokens, 0 are in use, 65 more asked for; .* n_ctx=65"):
        next(model.generate([5] * 65))


@pytest.mark.parametrize("token", [-1, 320])
def test_a_token_out_of_range(model, token):
    with pytest.raises(GraphError, match=rf"token id {token} is out of range; the model has ids 0 to 319"):
        next(model.generate([5, token]))


def test_an_empty_prompt(model):
    with pytest.raises(GraphError, match="the batch is empty"):
        next(model.generate([]))


def test_an_unknown_option(model):
    with pytest.raises(SettingsError, match=r"\[generate\] unknown option temprature; known: min_p"):
        model.generate(PROMPT, temprature=1)


@given(st.text("ab<|", max_size=30), st.lists(st.text("ab<|", min_size=1, max_size=4), max_size=3), st.data())
def test_stop_strings_give_out_all_text_before_the_first(text, strings, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    watch, out = StopStrings(strings), ""
    for start, end in pairwise([0, *cuts, len(text)]):
        out += watch.push(text[start:end])
        if watch.found:
            break
    found = [text.index(string) for string in strings if string in text]
    assert watch.found == bool(found)
    if found:
        # A stop string that ends sooner may begin later than another.
        assert text.startswith(out)
        assert any(text[len(out) :].startswith(string) for string in strings)
    else:
        assert out + watch.flush() == text


def test_decoding_spends_little_python(monkeypatch):
    """Under 100 µs of processor time a token outside the plan's run and the sampler, for the tiny model."""
    inside = 0.0

    def timed(function):
        def run(*arguments):
            nonlocal inside
            start = thread_time()
            result = function(*arguments)
            inside += thread_time() - start
            return result

        return run

    monkeypatch.setattr(Plan, "execute", timed(Plan.execute))
    monkeypatch.setattr(Sampler, "sample", timed(Sampler.sample))
    generation = graphrt.load("tiny-deepseek2", threads=1).generate("ROMEO:", max_tokens=120, **GREEDY)
    seconds = []
    while True:
        start, inside, tokens = thread_time(), 0.0, len(generation.tokens)
        if next(generation, None) is None:
            break
        seconds.append((thread_time() - start - inside) / (len(generation.tokens) - tokens))
    assert np.median(seconds[10:]) < 100e-6


def test_a_chat_is_written_as_the_models_template_says(model, monkeypatch):
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[me]"
    monkeypatch.setitem(model.tokenizer.vocabulary.__dict__, "chat_template", template)
    chat = model.generate([{"role": "user", "content": "who"}, {"role": "me", "content": "I"}], max_tokens=5, **GREEDY)
    text = model.generate(model.tokenize("[user] who\n[me] I\n[me]"), max_tokens=5, **GREEDY)
    assert list(chat) == list(text)
    assert chat.timings.prompt_tokens == text.timings.prompt_tokens


def test_a_chat_without_a_template(model, monkeypatch):
    monkeypatch.setitem(model.tokenizer.vocabulary.__dict__, "chat_template", None)
    with pytest.raises(FormatError, match="no chat template"):
        model.generate([{"role": "user", "content": "who"}])
