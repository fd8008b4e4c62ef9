"""Moved positions: exact against what defines them, in text without an end, and in memory that stays the same."""

import os
from dataclasses import replace

import numpy as np
import pytest

import graphrt
from graphrt import dtypes
from graphrt.errors import GraphError
from graphrt.models.batch import Batch
from graphrt.models.context import Context
from graphrt.models.synth import synthesise
from graphrt.ops.rope import turned

# The long run of 100,000 tokens takes a minute: GRAPHRT_LONG_CONTEXT=100000.
LONG = int(os.environ.get("GRAPHRT_LONG_CONTEXT", "3000"))
TOKENS = [int(token) for token in np.random.default_rng(0).integers(3, 300, 40)]


def assert_close(got, right, tolerance=1e-5):
    assert np.abs(got - right).max() < tolerance * np.abs(right).max()


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory):
    """Models of one layer, whose cells depend on nothing but their token and position."""
    folder = tmp_path_factory.mktemp("one_layer")

    def make(preset: str, **options) -> Context:
        path = folder / f"{preset}.gguf"
        if not path.exists():
            synthesise(preset, path, layers=1, dtype="f32", seed=3)
        options = {"backends": "reference", "cache_type": "f32", "n_ctx": 64, **options}
        return graphrt.load(path, **options).new_context()

    return make


@pytest.mark.parametrize("k_cache", ["roped", "unroped"])
@pytest.mark.parametrize(
    ("preset", "mla"), [("tiny-llama", None), ("tiny-deepseek2", "naive"), ("tiny-deepseek2", "absorbed")]
)
def test_a_shift_of_one_layer_is_as_if_the_tokens_had_always_stood_there(one_layer, preset, mla, k_cache):
    moved = one_layer(preset, mla=mla, k_cache=k_cache)
    moved.decode(Batch.of(TOKENS[:30]))
    moved.seq_rm(0, 4, 15)
    moved.seq_add(0, 15, -1, -11)
    moved.decode(Batch.of(TOKENS[30:32], 19))
    moved.seq_rm(0, 0, 3)
    moved.seq_add(0, 3, -1, -3)
    fresh = one_layer(preset, mla=mla, k_cache=k_cache)
    fresh.decode(Batch.of([TOKENS[3], *TOKENS[15:30], *TOKENS[30:32]]))
    for batch in (Batch.of(TOKENS[32:36], 18, all_logits=True), Batch.of([7], 22)):
        assert_close(moved.decode(batch).copy(), fresh.decode(batch))


def rotated_in_place(context: Context) -> None:
    """What a shift means, by hand: every cached key turned by its cell's shift."""
    cells = context.cells
    for layer, parts in zip(context.decoder.layers, context.cache._parts, strict=True):
        keys, rope = parts["k"].data, layer.attention.rope
        factors = None if rope.freq_factors is None else rope.freq_factors.data
        rotated = turned(dtypes.to_f32(keys), cells.shifts, factors, replace(rope.rotation(), magnitude=1.0))
        keys[:] = dtypes.from_f32(rotated.astype(np.float32), dtypes.of(keys))
    cells.shifts[:] = 0
    cells.is_shifted = False


def edited(context: Context, edit: str) -> Context:
    context.decode(Batch.of(TOKENS))
    if edit == "shift":
        context.shift(keep=5)
    else:  # self-extend: groups of four share a position, all but the newest eight
        context.seq_div(0, 0, 32, 4)
        context.seq_add(0, 32, -1, -24)
    return context


@pytest.mark.parametrize("edit", ["shift", "self-extend"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_edits_of_positions_agree_with_keys_that_are_rotated_again(gguf, name, backend, edit):
    def context_of(k_cache):
        options = {"cache_type": "f32", "k_cache": k_cache, "n_ctx": 300, "threads": 1}
        return edited(graphrt.load(gguf(name), backends=backend, **options).new_context(), edit)

    by_shift, unroped, by_hand = context_of("roped"), context_of("unroped"), context_of("roped")
    rotated_in_place(by_hand)
    assert by_shift.cells.is_shifted
    for tokens in (TOKENS[:9], [7]):
        batch = Batch.of(tokens, by_hand.seq_pos_max(0) + 1, all_logits=True)
        right = by_hand.decode(batch).copy()
        assert_close(by_shift.decode(batch), right, 1e-4)
        assert_close(unroped.decode(batch), right, 1e-4)


@pytest.mark.parametrize(("cache_type", "worst"), [("f16", 3e-3), ("q8_0", 3e-2)])
@pytest.mark.parametrize("k_cache", ["roped", "unroped"])
def test_two_hundred_small_shifts_are_one_large_one(one_layer, k_cache, cache_type, worst):
    """No drift, whatever the cache keeps: keys that are rotated in place two hundred times lose all that they held."""

    def shifted(steps, after=lambda context: None):
        context = one_layer("tiny-llama", cache_type=cache_type, k_cache=k_cache, n_ctx=256)
        context.decode(Batch.of([9] * 200))
        context.decode(Batch.of(TOKENS, 200))
        for _ in range(steps):
            context.seq_rm(0, 0, 200 // steps)
            context.seq_add(0, 200 // steps, -1, -(200 // steps))
            after(context)
        return context.decode(Batch.of(TOKENS[:5], 40, all_logits=True)).copy()

    fresh = one_layer("tiny-llama", cache_type="f32", n_ctx=256)
    fresh.decode(Batch.of(TOKENS))
    right = fresh.decode(Batch.of(TOKENS[:5], 40, all_logits=True))
    in_steps = shifted(200)
    np.testing.assert_array_equal(in_steps, shifted(1))
    assert_close(in_steps, right, worst)
    if k_cache == "roped":
        error, drifted = (np.abs(logits - right).max() for logits in (in_steps, shifted(200, rotated_in_place)))
        assert drifted > 3 * error


def test_a_sequence_that_shares_its_cells_moves_alone(one_layer):
    """Its cells are copied; the other sequence stays as it was."""
    context, fresh = one_layer("tiny-llama"), one_layer("tiny-llama")
    context.decode(Batch.of(TOKENS[:10]))
    context.seq_cp(0, 1)
    context.decode(Batch.of([5], 10, sequence=1))
    context.seq_rm(1, 0, 4)
    context.seq_add(1, 4, -1, -4)
    assert context.cells.used == 10 + 6 + 1
    fresh.decode(Batch.of(TOKENS[:10]))
    assert_close(context.decode(Batch.of([7], 10)).copy(), fresh.decode(Batch.of([7], 10)))
    fresh.clear()
    fresh.decode(Batch.of([*TOKENS[4:10], 5]))
    assert_close(context.decode(Batch.of([7], 7, sequence=1)).copy(), fresh.decode(Batch.of([7], 7)))


def test_shared_cells_without_room_for_copies(one_layer):
    context = one_layer("tiny-llama", n_ctx=16)
    context.decode(Batch.of(TOKENS[:10]))
    context.seq_cp(0, 1)
    with pytest.raises(GraphError, match=r"8 cells .* shared with others .* only 6 of 16 are free; remove a sequence"):
        context.seq_add(1, 2, -1, 3)
    assert context.seq_pos_max(1) == 9


def test_a_shift_that_has_nothing_to_discard(one_layer):
    context = one_layer("tiny-llama")
    context.decode(Batch.of(TOKENS[:10]))
    with pytest.raises(GraphError, match="cannot discard half of 10 positions after the first 9; keep fewer"):
        context.shift(keep=9)


@pytest.mark.parametrize("k_cache", ["roped", "unroped"])
def test_generation_goes_on_when_the_context_is_full(gguf, k_cache):
    model = graphrt.load(gguf("llama"), backends="reference", n_ctx=24, k_cache=k_cache)
    generation = model.generate(TOKENS[:8], max_tokens=60, temperature=1, seed=1, context_shift=True, keep=4)
    list(generation)
    assert generation.finish_reason == "max_tokens"
    assert len(generation.tokens) == 60
    context = model.contexts.idle[0]
    assert generation.timings.context_shifts == 5
    history = [*TOKENS[:8], *generation.tokens[:-1]]
    cells = context.cells.of(0)
    assert context.cells.positions[cells].tolist() == list(range(len(cells)))
    count = len(cells) - 4
    assert context.cells.tokens[cells].tolist() == [*TOKENS[:4], *history[-count:]]


@pytest.mark.parametrize(("keep", "kept"), [(0, 0), (3, 3), (-1, 8), (99, 8)])
def test_what_is_kept(gguf, keep, kept):
    model = graphrt.load(gguf("llama"), backends="reference", n_ctx=16)
    generation = model.generate(TOKENS[:8], max_tokens=10, temperature=0, context_shift=True, keep=keep)
    list(generation)
    cells = model.contexts.idle[0].cells
    unmoved = cells.tokens[cells.of(0)][cells.shifts[cells.of(0)] == 0]
    assert unmoved[:kept].tolist() == TOKENS[:kept]
    assert cells.shifts[cells.of(0)][kept] < 0


def test_the_beginning_token_is_kept_always(gguf):
    model = graphrt.load(gguf("llama"), backends="reference", n_ctx=16)
    bos = model.tokenizer.vocabulary.bos
    list(model.generate([bos, *TOKENS[:7]], max_tokens=10, temperature=0, context_shift=True))
    cells = model.contexts.idle[0].cells
    assert cells.tokens[cells.of(0)][0] == bos
    assert cells.shifts[cells.of(0)].tolist()[:2] == [0, -7]


def memory() -> int:
    """Bytes of this process in RAM."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the system has no /proc/self/statm")
def test_a_long_text_runs_in_memory_that_stays_the_same():
    model = graphrt.load("tiny-deepseek2", n_ctx=256, threads=1)
    generation = model.generate("ROMEO:", max_tokens=LONG, temperature=0, context_shift=True, keep=-1)
    early = 0
    for _ in generation:
        if not early and len(generation.tokens) >= LONG // 10:
            early = memory()
    assert len(generation.tokens) == LONG
    assert generation.timings.context_shifts > LONG // 256
    assert memory() < early + (4 << 20)
    assert len(model.contexts.idle[0]._steps) <= 4
