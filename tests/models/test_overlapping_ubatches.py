"""Ubatches of a prompt overlap on asynchronous devices, and give what they give one after the other."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

import graphrt
from graphrt import Cancelled, KernelError
from graphrt.backends.sim import Host, SimBackend
from graphrt.models.batch import Batch
from graphrt.models.context import Context

UBATCH, UBATCHES = 8, 6
PROMPT = np.random.default_rng(0).integers(0, 300, UBATCH * UBATCHES - 3)
HALVES = [r"^(token_embd|blk\.[01]\.)=sim0", r"^(output|blk\.)=sim1", r"^cache_.*-[01]$=sim0", "^cache_=sim1"]


def halves() -> tuple[Context, Host, list[SimBackend]]:
    """A context over two devices with half of the layers each."""
    host = Host()
    devices = [
        SimBackend(f"sim{number}", asynchronous=True, host=host, flops=1e9, bandwidth=1e12, link=1e9)
        for number in range(2)
    ]
    model = graphrt.load(
        "tiny-mixtral", backends=[*devices, "cpu"], threads=1, n_ctx=128, n_ubatch=UBATCH, overrides=HALVES
    )
    return model.new_context(), host, devices


def one_by_one(context: Context) -> np.ndarray:
    """The last token's logits, after a `decode` of each ubatch."""
    for start in range(0, len(PROMPT), UBATCH):
        logits = context.decode(Batch.of(PROMPT[start : start + UBATCH], start))
    return logits.copy()


def fails_and_works_again(context: Context, error: type[BaseException], match: str, kept: int) -> None:
    """The prompt fails, the tokens of `kept` ubatches stay in the cache, and the prompt can be decoded again."""
    with pytest.raises(error, match=match):
        context.decode(Batch.of(PROMPT))
    assert context.cells.used == kept * UBATCH
    assert context.cells.last[0] == kept * UBATCH - 1
    context.progress = None
    got = context.decode(Batch.of(PROMPT[kept * UBATCH :], kept * UBATCH)).copy()
    context.clear()
    np.testing.assert_array_equal(got, one_by_one(context))


def test_logits_are_those_of_one_ubatch_after_the_other():
    context, _, _ = halves()
    alone = graphrt.load("tiny-mixtral", backends=["reference"], n_ctx=128, n_ubatch=UBATCH).new_context()
    for all_logits in (True, False):
        batch = Batch.of(PROMPT, all_logits=all_logits)
        np.testing.assert_array_equal(context.decode(batch), alone.decode(batch))
        np.testing.assert_array_equal(context.cells.tokens[: len(PROMPT)], PROMPT)
        context.clear()
        alone.clear()


def test_both_devices_work_at_the_same_time():
    """On the virtual clock a prompt takes as long as all of its ubatches on one half, and one on the other."""
    context, host, _ = halves()
    one_by_one(context)  # compiles, and uploads weights
    times = []
    for decode in (lambda: one_by_one(context), lambda: context.decode(Batch.of(PROMPT))):
        context.clear()
        start = host.now
        decode()
        times.append(host.now - start)
    alone, overlapped = times
    assert overlapped == pytest.approx(alone * (UBATCHES + 1) / (2 * UBATCHES), rel=0.1)


def test_nothing_of_the_cache_is_read_back():
    context, _, devices = halves()
    context.decode(Batch.of(PROMPT))
    width, vocabulary = context.decoder.embedding.shape[1], context.decoder.vocabulary_size
    assert devices[0].clock.nbytes["download"] == len(PROMPT) * width * 4
    assert devices[1].clock.nbytes["download"] == vocabulary * 4


@pytest.mark.parametrize("device", [0, 1])
def test_a_failure_frees_the_cells_of_what_was_under_way(device):
    context, _, devices = halves()
    nodes = next(part.nodes for part in context.plan(UBATCH, 0, 128).schedule.splits if part.backend is devices[device])
    devices[device].failures.kernel = 2 * len(nodes) + 1
    fails_and_works_again(context, KernelError, "a failure on demand", kept=2)


def test_progress_tells_of_finished_ubatches():
    context, _, _ = halves()
    told = []
    context.progress = lambda done, total: told.append((done, total))
    context.decode(Batch.of(PROMPT))
    assert told == [(min(number * UBATCH, len(PROMPT)), len(PROMPT)) for number in range(UBATCHES + 1)]


def test_an_interrupt_frees_the_cells_of_what_was_under_way():
    context, _, _ = halves()

    def interrupt(done, total):
        if done == 2 * UBATCH:
            raise KeyboardInterrupt("enough")

    context.progress = interrupt
    fails_and_works_again(context, KeyboardInterrupt, "enough", kept=2)


def test_a_cancel_between_two_ubatches():
    context, _, _ = halves()
    context.progress = lambda done, total: context.cancel() if done == UBATCH else None
    fails_and_works_again(context, Cancelled, "cancelled", kept=1)


def test_a_cancel_from_another_thread_while_a_device_works():
    context, _, devices = halves()
    context.decode(Batch.of(PROMPT))
    context.clear()
    held, started = threading.Event(), threading.Event()

    def hold():
        started.set()
        held.wait()

    def cancel():
        while context.cells.used < 2 * UBATCH:
            time.sleep(0.001)
        context.cancel()
        held.set()

    devices[0]._queue.begin(hold)
    started.wait()
    thread = threading.Thread(target=cancel, daemon=True)
    thread.start()
    fails_and_works_again(context, Cancelled, "cancelled", kept=0)
    thread.join()


def test_a_cancel_before_a_decode_does_not_stop_it():
    context, _, _ = halves()
    context.decode(Batch.of(PROMPT))
    context.cancel()
    context.clear()
    context.decode(Batch.of(PROMPT))


def test_a_watch_sees_every_node_of_every_ubatch():
    context, _, _ = halves()
    seen = []
    context.watch = lambda node, array: seen.append(node.name)
    got = context.decode(Batch.of(PROMPT)).copy()
    assert seen.count("kqv-0") == UBATCHES
    context.watch = None
    context.clear()
    np.testing.assert_array_equal(got, one_by_one(context))
