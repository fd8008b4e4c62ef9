"""Looking at every node of a model's run, stopping it there, and cancelling it from another thread."""

import threading

import numpy as np
import pytest

import graphrt
from graphrt import Cancelled
from graphrt.models.batch import Batch


@pytest.fixture
def context(gguf):
    """An empty context of a small model, with ubatches of four tokens."""
    return graphrt.load(gguf("mixtral"), backends=["reference"], n_ubatch=4).new_context()


def test_a_watch_sees_every_result_in_order(context):
    seen = {}
    context.watch = lambda node, array: seen.update({node.name: array})
    logits = context.decode(Batch.of([5, 6, 7])).copy()
    assert list(seen) == [node.name for node in context.last_plan.graph.nodes if node.op.kind != "view"]
    np.testing.assert_array_equal(seen["result_output"], logits)
    context.watch = None
    context.clear()
    np.testing.assert_array_equal(context.decode(Batch.of([5, 6, 7])), logits)


def test_a_watch_that_says_false_stops_the_run_there(context):
    seen = []

    def until_attention(node, array):
        seen.append(node.name)
        return node.name != "kqv-0"

    context.watch = until_attention
    with pytest.raises(Cancelled, match="stopped after kqv-0"):
        context.decode(Batch.of([5, 6, 7]))
    assert seen[-1] == "kqv-0"
    assert context.cells.used == 0, "the tokens of a stopped run are not in the cache"


def test_cancel_from_another_thread_ends_a_long_prompt(context):
    tokens = [3] * 100
    expected = context.decode(Batch.of([5, 6, 7])).copy()
    context.clear()
    started = threading.Event()
    context.watch = lambda node, array: started.set()

    def cancel():
        started.wait()
        context.cancel()

    thread = threading.Thread(target=cancel, daemon=True)
    thread.start()
    with pytest.raises(Cancelled):
        context.decode(Batch.of(tokens))
    thread.join()
    assert context.cells.used < len(tokens)
    context.watch = None
    context.clear()
    np.testing.assert_array_equal(context.decode(Batch.of([5, 6, 7])), expected)


def test_an_interrupt_in_a_kernel_leaves_the_context_usable(context):
    expected = context.decode(Batch.of([5, 6])).copy()
    context.clear()

    def interrupt(node, array):
        raise KeyboardInterrupt

    context.watch = interrupt
    with pytest.raises(KeyboardInterrupt):
        context.decode(Batch.of([5, 6]))
    context.watch = None
    np.testing.assert_array_equal(context.decode(Batch.of([5, 6])), expected)


def test_a_cancel_in_the_instant_before_the_plan_runs_stops_it(context):
    context.decode(Batch.of([5, 6]))
    (step,) = context._steps.values()

    def cancel_then_execute():
        context.cancel()
        step.plan.execute()

    step.execute = cancel_then_execute
    context.clear()
    with pytest.raises(Cancelled):
        context.decode(Batch.of([5, 6]))
    assert context.cells.used == 0


def test_a_cancel_after_a_decode_does_not_stop_the_next(context):
    expected = context.decode(Batch.of([5, 6])).copy()
    context.cancel()
    context.clear()
    np.testing.assert_array_equal(context.decode(Batch.of([5, 6])), expected)
