"""Many sequences in one batch: prompts and single tokens mixed, joining and leaving, each as if it ran alone."""

import numpy as np
import pytest

import graphrt
from graphrt.models.batch import Batch
from graphrt.models.context import Context

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [20], [30, 31, 32], [40, 41, 42, 43, 44], [50, 51]]
STEPS = 6


def alone(context: Context, prompt: list[int]) -> np.ndarray:
    """The logits of the greedy tokens after a prompt."""
    context.clear()
    logits = [context.decode(Batch.of(prompt))[-1].copy()]
    for position in range(len(prompt), len(prompt) + STEPS - 1):
        logits.append(context.decode(Batch.of([int(logits[-1].argmax())], position))[-1].copy())
    return np.array(logits)


def together(context: Context, seats: int, ubatch_of: int) -> list[np.ndarray]:
    """The same of all prompts, at most `seats` at a time, a prompt in pieces of `ubatch_of` tokens."""
    found = [[] for _ in PROMPTS]
    waiting, running = list(enumerate(PROMPTS)), {}  # running: sequence -> (request, tokens still to run)
    while waiting or running:
        for sequence in range(seats):
            if sequence not in running and waiting:
                running[sequence] = waiting.pop(0)
        rows = []
        for sequence, (request, tokens) in running.items():
            start = context.seq_pos_max(sequence) + 1
            for i, token in enumerate(tokens[:ubatch_of]):
                rows.append((token, start + i, sequence, i == len(tokens) - 1))
            running[sequence] = (request, tokens[ubatch_of:])
        batch = Batch(*(np.array(column) for column in zip(*rows, strict=True)))
        ended = [row[2] for row in rows if row[3]]
        for sequence, logits in zip(ended, context.decode(batch).copy(), strict=True):
            request = running[sequence][0]
            found[request].append(logits)
            if len(found[request]) == STEPS:
                context.seq_rm(sequence)
                del running[sequence]
            else:
                running[sequence] = (request, [int(logits.argmax())])
    return [np.array(logits) for logits in found]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(("seats", "piece"), [(2, 3), (5, 8), (3, 1)])
@pytest.mark.parametrize("name", ["llama", "mixtral", "deepseek2"])
def test_every_sequence_gets_the_logits_that_it_gets_alone(gguf, name, seats, piece, backend):
    model = graphrt.load(gguf(name), backends=backend, cache_type="f32", n_ctx=300, threads=1)
    single = model.new_context()
    for prompt, logits in zip(PROMPTS, together(model.new_context(), seats, piece), strict=True):
        right = alone(single, prompt)
        assert np.abs(logits - right).max() < 1e-4 * np.abs(right).max()


def test_sixty_four_sequences(gguf):
    model = graphrt.load(gguf("llama"), backends="cpu", cache_type="f32", n_ctx=512, threads=1)
    context, tokens = model.new_context(), np.arange(64) + 3
    for step in range(3):
        batch = Batch((tokens + step) % 300, np.full(64, step), np.arange(64), np.ones(64, bool))
        logits = context.decode(batch).copy()
    for sequence in (0, 31, 63):
        right = model.logits([(sequence + 3 + step) % 300 for step in range(3)])[-1]
        assert np.abs(logits[sequence] - right).max() < 1e-4 * np.abs(right).max()
