"""A cache in a file: opened again it goes on; one context at a time; damage, other models and sizes are refused."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import graphrt
from graphrt.backends.sim import SimBackend
from graphrt.errors import FormatError, GraphError, SettingsError
from graphrt.models.batch import Batch

TOKENS = [5, 6, 7, 8, 9]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def load(gguf, tmp_path):
    """A model whose first context lies in a file; closed when the test ends."""
    models = []

    def make(name="llama", **options):
        options = {"backends": "reference", "n_ctx": 32, "kv_file": tmp_path / "cache.kv", **options}
        models.append(graphrt.load(gguf(name), **options))
        return models[-1]

    yield make
    for model in models:
        model.close()


def test_a_prompt_is_not_run_again_after_the_file_is_opened_again(load, tmp_path):
    model = load()
    text = "".join(model.generate(TOKENS, max_tokens=6, temperature=0))
    model.close()
    with load() as model:
        generation = model.generate(TOKENS, max_tokens=6, temperature=0)
        assert "".join(generation) == text
        assert generation.timings.reused_tokens == len(TOKENS) - 1
        longer = [*TOKENS, *generation.tokens[:3]]
        again = model.generate([*longer, 3], max_tokens=1, temperature=0)
        list(again)
        assert again.timings.reused_tokens == len(longer)


@pytest.mark.parametrize("cache_type", ["f32", "q8_0"])
def test_sequences_are_found_again(load, cache_type):
    with load(cache_type=cache_type) as model:
        context = model.contexts.idle[0]
        context.decode(Batch.of(TOKENS))
        context.seq_cp(0, 4)
        context.decode(Batch.of([11], 5, sequence=4))
        right = context.decode(Batch.of([3], 6, sequence=4)).copy()
        context.seq_rm(4, 6)
    with load(cache_type=cache_type) as model:
        context = model.contexts.idle[0]
        assert (context.seq_pos_max(0), context.seq_pos_max(4), context.cells.used) == (4, 5, 6)
        np.testing.assert_array_equal(context.decode(Batch.of([3], 6, sequence=4)), right)


def test_what_a_killed_process_had_not_finished_is_free(load, tmp_path):
    code = f"""
import os, signal, graphrt
from graphrt.models.batch import Batch
model = graphrt.load({str(load().file.path)!r}, backends="reference", n_ctx=32, kv_file={str(tmp_path / "killed.kv")!r})
context = model.contexts.idle[0]
context.decode(Batch.of({TOKENS}))
context.watch = lambda node, array: os.kill(os.getpid(), signal.SIGKILL)
context.decode(Batch.of([7, 8], 5))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert result.returncode == -9
    context = load(kv_file=tmp_path / "killed.kv").contexts.idle[0]
    assert context.cells.history(0).tolist() == TOKENS
    assert context.cells.used == 5
    fresh = load(kv_file=None).new_context()
    right = fresh.decode(Batch.of([*TOKENS, 7]))
    np.testing.assert_allclose(context.decode(Batch.of([7], 5)), right, atol=1e-5)


def test_two_at_once_are_refused(load, tmp_path):
    with load(), pytest.raises(SettingsError, match=r"cache.kv is in use by another context or process"):
        load()
    with load() as model:
        assert model.contexts.idle[0].cells.used == 0


def test_another_process_is_refused(load, tmp_path):
    model = load()
    code = f"""
import graphrt
graphrt.load({str(model.file.path)!r}, backends="reference", n_ctx=32, kv_file={str(tmp_path / "cache.kv")!r})
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    refused = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "is in use by another context or process" in refused.stderr
    model.close()
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_a_closed_context_is_of_no_use(load):
    model = load()
    context = model.contexts.idle[0]
    model.close()
    with pytest.raises(GraphError, match="is closed"):
        context.decode(Batch.of([1]))
    assert list(model.generate([5], max_tokens=1)) != [], "another context is made, in memory"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("llama", {"n_ctx": 64}, "cells 32, here 64"),
        ("llama", {"cache_type": "f32"}, 'dtype "f16", here "f32"'),
        ("deepseek3", {}, 'architecture "llama", here "deepseek2"'),
    ],
)
def test_a_file_of_another_model_or_size(load, name, options, message):
    load().close()
    with pytest.raises(FormatError, match=rf"\[kv file\] .*cache.kv is of another model or cache: .*{message}"):
        load(name, **options)
    load().close()


def test_files_that_are_damaged(load, tmp_path):
    load().close()
    path = tmp_path / "cache.kv"
    whole = path.read_bytes()
    for content, message in [
        (whole[:-4096], rf"ends at byte {len(whole) - 4096}, and must at {len(whole)}"),
        (whole[:10], "begins with"),
        (b"GGUF" + whole[4:], r"begins with .*GGUF"),
        (whole[:24] + b"x" + whole[25:], "the header at byte 24 cannot be read"),
        (whole[:16] + b"\x09" + whole[17:], "is of version 9, and this graphrt reads 1"),
    ]:
        path.write_bytes(content)
        with pytest.raises(FormatError, match=message):
            load()
        assert path.read_bytes() == content


def test_places_where_no_file_can_be(load, tmp_path):
    with pytest.raises(SettingsError, match="cannot be opened: Is a directory"):
        load(kv_file=tmp_path)
    with pytest.raises(SettingsError, match="cannot be opened: No such file or directory"):
        load(kv_file=tmp_path / "none" / "cache.kv")


def test_a_disk_without_room(load, tmp_path):
    with pytest.raises(SettingsError, match=r"cannot be made [\d,]+ bytes long: [\d,]+ bytes are free there; lower"):
        load(n_ctx=(1 << 31) - 1, cache_type="f32")
    assert not (tmp_path / "cache.kv").exists()


def test_a_cache_on_a_device_is_refused(load):
    model = load(backends=[SimBackend(), "reference"], overrides="cache_.*-1=sim")
    with pytest.raises(SettingsError, match=r'lives on sim \(override "cache_.*-1=sim"\).*cache_=cpu'):
        model.logits([1, 2])
