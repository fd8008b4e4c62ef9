"""Batches: what they hold, and what is refused."""

import numpy as np
import pytest

import graphrt
from graphrt.errors import GraphError
from graphrt.models.batch import Batch


def test_a_batch_of_one_sequence():
    batch = Batch.of([7, 8, 9], 4, sequence=2)
    assert (batch.pos.tolist(), batch.seq_ids.tolist()) == ([4, 5, 6], [2, 2, 2])
    assert batch.want_logits.tolist() == [False, False, True]
    assert batch[1:].tokens.tolist() == [8, 9]


def test_lists_will_do():
    batch = Batch([7, 8], [0, 1], [0, 0], [False, True])
    assert [row.dtype.kind for row in (batch.tokens, batch.pos, batch.seq_ids, batch.want_logits)] == list("iiib")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": [0.5, 1]}, "tokens must be a row of whole numbers, got float64"),
        ({"tokens": [[1, 2]]}, r"tokens must be a row of whole numbers, got int64 \[1, 2\]"),
        ({"want_logits": [0, 1]}, "want_logits must be a row of True and False, got int64"),
        ({"pos": [0]}, "2 tokens, but 1 pos"),
        ({"seq_ids": [0, 0, 0]}, "2 tokens, but 3 seq_ids"),
        ({"pos": [0, 1 << 31]}, "position 2147483648 is out of range; it must be 0 to 2147483647"),
        ({"seq_ids": [0, -1]}, "sequence -1 is out of range; it must be 0 to 63"),
    ],
)
def test_rows_that_cannot_be(change, message):
    with pytest.raises(GraphError, match=message):
        Batch(**{"tokens": [1, 2], "pos": [0, 1], "seq_ids": [0, 0], "want_logits": [False, True], **change})


@pytest.mark.parametrize(
    ("pos", "seq_ids", "message"),
    [
        ([4], [0], r"position 4 leaves a hole in sequence 0, whose last one is 2; give 3"),
        ([2], [0], r"position 2 is not new to sequence 0, whose last one is 2; .* seq_rm\(0, 2, -1\)"),
        ([3, 5], [0, 0], "position 5 leaves a hole in sequence 0, whose last one is 3"),
        ([3, 3], [0, 0], "position 3 is not new to sequence 0, whose last one is 3"),
        ([3, 9, 4, 11], [0, 1, 0, 1], "position 11 leaves a hole in sequence 1, whose last one is 9"),
    ],
)
def test_positions_that_break_a_sequence(gguf, pos, seq_ids, message):
    context = graphrt.load(gguf("llama"), backends="reference", n_ctx=32).new_context()
    context.decode(Batch.of([5, 6, 7]))
    with pytest.raises(GraphError, match=message):
        context.decode(Batch(np.full(len(pos), 5), pos, seq_ids, np.ones(len(pos), bool)))
    assert context.cells.used == 3


def test_a_sequence_may_start_anywhere(gguf):
    context = graphrt.load(gguf("llama"), backends="reference", n_ctx=32).new_context()
    context.decode(Batch.of([5, 6], 100, sequence=1))
    context.decode(Batch.of([7], 102, sequence=1))
    assert context.cells.last[1] == 102
