"""Cells and the memory behind them: any free cell serves, sequences share cells, dtypes hold what fits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import graphrt
from graphrt.errors import GraphError, PlacementError, SettingsError
from graphrt.models.batch import Batch
from graphrt.models.cells import EMPTY, Cells
from graphrt.models.kv_cache import KVCache


def put(cells: Cells, positions: range, sequence: int = 0) -> np.ndarray:
    taken = cells.find(len(positions))
    cells.occupy(taken, np.array(positions, np.int32), np.full(len(positions), sequence, np.int32))
    return taken


def test_cells_fill_from_the_first():
    cells = Cells(1024)
    np.testing.assert_array_equal(put(cells, range(3)), [0, 1, 2])
    np.testing.assert_array_equal(put(cells, range(3, 5)), [3, 4])
    assert cells.used == 5
    assert cells.last[0] == 4


def test_freed_cells_are_used_again_though_not_contiguous():
    cells = Cells(16)
    put(cells, range(8))
    cells.seq_rm(0, 2, 3)
    cells.seq_rm(0, 5, 6)
    np.testing.assert_array_equal(cells.find(4), [2, 5, 8, 9])
    put(cells, range(8, 12))
    np.testing.assert_array_equal(cells.positions[:10], [0, 1, 8, 3, 4, 9, 6, 7, 10, 11])


def test_visible_cells_come_in_buckets_up_to_the_size():
    cells = Cells(600)
    assert cells.visible_with(np.array([0])) == 256
    assert cells.visible_with(np.array([255])) == 256
    assert cells.visible_with(np.array([255, 256])) == 512
    assert cells.visible_with(np.array([512])) == 600
    assert Cells(100).visible_with(np.array([3])) == 100


@pytest.mark.parametrize(("end", "seen"), [(4096, 4096), (4097, 4608), (8193, 9216), (32768, 32768), (32769, 36864)])
def test_buckets_grow_with_the_cells(end, seen):
    assert Cells(1 << 20).visible_with(np.array([end - 1])) == seen


def test_an_overflow_names_the_numbers_and_the_remedy():
    cells = Cells(10)
    put(cells, range(8))
    with pytest.raises(GraphError, match=r"n_ctx is 10 tokens, 8 are in use, 3 more asked for; .* n_ctx=11 or more"):
        cells.find(3)


def test_sequences_share_cells_until_the_last_lets_go():
    cells = Cells(16)
    put(cells, range(4), sequence=1)
    cells.seq_cp(1, 63)
    assert cells.used == 4
    cells.seq_rm(1)
    assert cells.used == 4
    assert cells.last[1] == EMPTY
    assert cells.last[63] == 3
    cells.seq_rm(63, 2)
    assert cells.used == 2
    cells.clear()
    assert cells.used == 0
    assert (cells.positions == EMPTY).all()


def test_a_sequence_number_out_of_range():
    with pytest.raises(GraphError, match="sequence 64 is out of range"):
        Cells(4).seq_rm(64)


@given(st.lists(st.tuples(st.sampled_from(["add", "remove"]), st.integers(1, 6), st.integers(0, 30)), max_size=30))
def test_bookkeeping_agrees_with_a_plain_model(actions):
    cells, alive, position = Cells(24), {}, 0
    for action, count, start in actions:
        if action == "add" and count <= 24 - len(alive):
            taken = put(cells, range(position, position + count))
            expected = [cell for cell in range(24) if cell not in alive.values()][:count]
            assert taken.tolist() == expected
            alive |= dict(zip(range(position, position + count), expected, strict=True))
            position += count
        elif action == "remove":
            cells.seq_rm(0, start, start + count)
            alive = {p: cell for p, cell in alive.items() if not start <= p < start + count}
        assert cells.used == len(alive)
        assert {int(cells.positions[cell]): cell for cell in np.flatnonzero(cells.sequences)} == alive


@pytest.mark.parametrize(
    ("name", "tolerance"), [("f32", 0), ("f16", 1e-3), ("bf16", 1e-2), ("q8_0", 1e-2), ("q4_0", 0.2)]
)
def test_rows_are_written_to_their_cells_in_any_type(name, tolerance):
    cache = KVCache(2, 8, {"k": (2, 32), "v": (2, 64)}, name)
    rows, cells = graphrt.input("rows", (2, 2, 64)), graphrt.input("cells", (2,), "i64")
    plan = graphrt.Scheduler(["reference"]).plan(cache.write(1, "v", rows, cells))
    values = np.random.default_rng(0).uniform(-1, 1, (2, 2, 64)).astype(np.float32)
    (after,) = plan.run(rows=values, cells=np.array([5, 2]))
    after = graphrt.dtypes.to_f32(after)
    np.testing.assert_allclose(after[[5, 2]], values, atol=tolerance)
    assert not after[[0, 1, 3, 4, 6, 7]].any()


def test_bytes_of_the_cache():
    assert KVCache(3, 100, {"latent": (1, 576)}, "q8_0").nbytes == 3 * 100 * 576 // 32 * 34
    assert KVCache(27, 1, {"latent": (1, 576)}, "f16").nbytes == 31_104
    assert KVCache(27, 1, {"k": (16, 192), "v": (16, 128)}, "f16").nbytes == 276_480


@pytest.mark.parametrize(
    ("name", "width", "message"),
    [
        ("q4_k", 256, 'unknown cache_type "q4_k"; choose one of f32'),
        ("q8_0", 80, "heads of 80 elements are not whole blocks"),
    ],
)
def test_types_that_do_not_fit_are_refused(name, width, message):
    with pytest.raises(SettingsError, match=message):
        KVCache(1, 4, {"k": (1, width)}, name)


def test_a_cache_larger_than_the_machine():
    memory = graphrt.state("cache_k-0", (1 << 30, 1 << 20), "f16")
    with pytest.raises(PlacementError, match=r"\[cache_k-0\] no room for 2,251,799,813,685,248 bytes"):
        memory.data  # noqa: B018


@pytest.mark.parametrize("cache_type", ["f16", "bf16", "q8_0", "q4_0"])
@pytest.mark.parametrize(("name", "mla"), [("llama", None), ("deepseek3", "naive"), ("deepseek3", "absorbed")])
def test_a_model_runs_with_a_small_cache(name, mla, cache_type, gguf, expected):
    if cache_type in ("q8_0", "q4_0") and name == "deepseek3":
        with pytest.raises(SettingsError, match="not whole blocks"):
            graphrt.load(gguf(name), mla=mla, cache_type=cache_type, backends="reference")
        return
    model = graphrt.load(gguf(name), mla=mla, cache_type=cache_type, backends="reference")
    right = expected(name)
    logits = model.logits(right.tokens)
    size = np.sqrt(np.mean(right.logits**2))
    assert (
        np.sqrt(np.mean((logits - right.logits) ** 2))
        < size * {"f16": 0.01, "bf16": 0.05, "q8_0": 0.1, "q4_0": 0.7}[cache_type]
    )


def test_sequences_do_not_see_each_other_and_removed_tokens_are_forgotten(gguf):
    model = graphrt.load(gguf("mixtral"), backends="reference", cache_type="f32")
    alone = model.logits([5, 6, 7])
    context = model.new_context()
    both = Batch(
        tokens=np.array([5, 9, 6, 9, 7]),
        pos=np.array([0, 0, 1, 1, 2]),
        seq_ids=np.array([0, 3, 0, 3, 0]),
        want_logits=np.array([True, False, True, False, True]),
    )
    np.testing.assert_allclose(context.decode(both), alone, atol=1e-5)
    context.seq_rm(0, 2)
    again = context.decode(Batch.of([7], 2))
    np.testing.assert_allclose(again[0], alone[2], atol=1e-5)


def test_a_copied_sequence_goes_on_without_running_its_prompt_again(gguf):
    model = graphrt.load(gguf("deepseek3"), backends="reference", cache_type="f32")
    context = model.new_context()
    context.decode(Batch.of([5, 6, 7]))
    context.seq_cp(0, 1)
    first = context.decode(Batch.of([8], 3)).copy()
    second = context.decode(Batch.of([9], 3, sequence=1)).copy()
    np.testing.assert_allclose(first[0], model.logits([5, 6, 7, 8])[-1], atol=1e-5)
    np.testing.assert_allclose(second[0], model.logits([5, 6, 7, 9])[-1], atol=1e-5)
