"""Saved sequences: what is loaded goes on as what was saved would; damage is named, and changes nothing."""

import struct

import numpy as np
import pytest

import graphrt
from graphrt.backends.sim import SimBackend
from graphrt.errors import FormatError, GraphError
from graphrt.models.batch import Batch
from graphrt.models.saved_state import CHECK, MAGIC, PREFIX
from graphrt.models.synth import synthesise

TOKENS = [5, 6, 7, 8, 9]


@pytest.fixture
def context(gguf):
    """A context of a small model that knows five tokens of sequence 0."""
    context = graphrt.load(gguf("llama"), backends="reference", n_ctx=32).new_context()
    context.decode(Batch.of(TOKENS))
    return context


def after(context, sequence=0):
    """The logits of one more token."""
    return context.decode(Batch.of([3], context.seq_pos_max(sequence) + 1, sequence=sequence)).copy()


@pytest.mark.parametrize("cache_type", ["f32", "f16", "q8_0"])
def test_a_loaded_sequence_goes_on_exactly(gguf, cache_type):
    model = graphrt.load(gguf("llama"), backends="reference", n_ctx=32, cache_type=cache_type)
    first, other = model.new_context(), model.new_context()
    first.decode(Batch.of(TOKENS))
    state = first.state_save()
    other.decode(Batch.of([9, 9, 9], sequence=1))
    other.decode(Batch.of([8, 8], sequence=2))
    other.seq_rm(1)
    other.state_load(state, 3)  # into cells that are not in one piece
    assert other.cells.history(3).tolist() == TOKENS
    np.testing.assert_array_equal(after(other, 3), after(first))


def test_positions_and_shifts_are_kept(context):
    context.seq_rm(0, 1, 3)
    context.seq_add(0, 3, -1, -2)
    state = context.state_save()
    context.clear()
    context.state_load(state, 1)
    cells = context.cells.of(1)
    assert context.cells.positions[cells].tolist() == [0, 1, 2]
    assert context.cells.shifts[cells].tolist() == [0, -2, -2]
    assert context.cells.tokens[cells].tolist() == [5, 8, 9]
    assert context.cells.is_shifted


def test_a_state_replaces_what_was_there(context):
    state = context.state_save()
    context.decode(Batch.of([1] * 27, 5))
    assert context.cells.used == context.size
    context.state_load(state)
    assert context.cells.history(0).tolist() == TOKENS
    for sequence in range(1, 6):
        context.state_load(state, sequence)
    with pytest.raises(GraphError, match="n_ctx is 32 tokens, 30 are in use, 5 more asked for"):
        context.state_load(state, 6)
    assert context.cells.used == 30


def test_an_empty_sequence(context):
    context.state_load(context.state_save(7), 0)
    assert context.cells.used == 0


def test_a_state_in_a_file(context, tmp_path):
    expected = after(context)
    context.seq_rm(0, 5)
    context.state_save_file(tmp_path / "five.state")
    context.clear()
    context.state_load_file(tmp_path / "five.state")
    np.testing.assert_array_equal(after(context), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["five.state"]
    with pytest.raises(FormatError, match=r"none.state cannot be read: No such file"):
        context.state_load_file(tmp_path / "none.state")


def test_states_of_a_cache_on_a_device(gguf):
    """Saved from a device, loaded before the first plan and after it."""
    host = graphrt.load(gguf("llama"), backends="reference", n_ctx=32).new_context()
    device = graphrt.load(gguf("llama"), backends=[SimBackend(), "reference"], overrides=".*=sim", n_ctx=32)
    filled, fresh = device.new_context(), device.new_context()
    for context in (host, filled):
        context.decode(Batch.of(TOKENS))
    state = filled.state_save()
    assert filled.scheduler.buffer_of(filled.cache.states[0]).memory == "sim"
    fresh.state_load(state)
    expected = after(host)
    np.testing.assert_array_equal(after(fresh), expected)
    filled.clear()
    filled.state_load(state, 2)
    np.testing.assert_array_equal(after(filled, 2), expected)


@pytest.mark.parametrize("cut", [0, 5, 30, -1])
def test_a_state_that_is_cut_off(context, cut):
    state = context.state_save()
    with pytest.raises(FormatError, match=r"\[state\] .* byte"):
        context.state_load(state[:cut])
    assert context.cells.history(0).tolist() == TOKENS


def test_any_damaged_byte_is_found(context):
    state = context.state_save()
    random = np.random.default_rng(0)
    for at in [0, 16, 20, 24, *random.integers(0, len(state), 60), len(state) - 1]:
        damaged = bytearray(state)
        damaged[at] ^= 1 << random.integers(0, 8)
        with pytest.raises(FormatError, match=r"\[state\]"):
            context.state_load(bytes(damaged))
    assert context.cells.history(0).tolist() == TOKENS


def test_a_later_version(context):
    state = bytearray(context.state_save())
    struct.pack_into("<I", state, len(MAGIC), 2)
    with pytest.raises(FormatError, match="of version 2, and this graphrt reads 1"):
        context.state_load(bytes(state))


def test_a_header_that_lies(context):
    text = b'{"cells": -1}'
    with pytest.raises(FormatError, match='architecture null, here "llama"'):
        context.state_load(PREFIX.pack(MAGIC, 1, len(text)) + text + CHECK.pack(0))


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        ("llama", {"cache_type": "f32"}, 'dtype "f16", here "f32"'),
        ("mixtral", {}, "layout|weights"),
        ("deepseek3", {}, 'architecture "llama", here "deepseek2"'),
    ],
)
def test_a_state_of_another_model(context, gguf, file, options, message):
    other = graphrt.load(gguf(file), backends="reference", n_ctx=32, **options).new_context()
    with pytest.raises(FormatError, match=rf"\[state\] is of another model or cache: .*({message})"):
        other.state_load(context.state_save())


def test_a_model_of_the_same_shape_but_other_weights(tmp_path):
    states = []
    for seed in (1, 2):
        path = tmp_path / f"{seed}.gguf"
        synthesise("tiny-deepseek-v3", path, layers=2, dtype="f32", seed=seed)
        context = graphrt.load(path, backends="reference", n_ctx=8).new_context()
        context.decode(Batch.of([1, 2]))
        states.append(context.state_save())
    with pytest.raises(FormatError, match="weights"):
        context.state_load(states[0])
