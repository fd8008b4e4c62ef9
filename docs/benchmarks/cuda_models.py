"""Whole models with random weights on a GPU: prompts, decoding, and what a step of decoding costs the host."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np

import graphrt
from docs.benchmarks.cuda_weights import DeviceWeights
from docs.benchmarks.model_work import cache_bytes, operations, weight_bytes
from graphrt.backends.cuda import CudaBackend
from graphrt.backends.cuda.device import Device
from graphrt.events import Event
from graphrt.models.batch import Batch
from graphrt.models.context import Context
from graphrt.models.gguf_file import GGUFFile
from graphrt.models.synth import synthesise_in_memory

SHORT = 16  # tokens before those that are decoded
ROUNDS = 3
PLACEMENTS: Mapping[str, list[str]] = {"all": [], "exps=cpu": ["exps=cpu"]}


@dataclass(frozen=True)
class Subject:
    """A model, with all its layers and tokens if nothing is said of them, in q4_0.

    Args:
        prompt, decode: tokens of a prompt, which runs in one go, and tokens that are decoded.
    """

    preset: str
    layers: int | None = None
    vocabulary: int | None = None
    prompt: int = 2048
    decode: int = 64

    def file(self, device: Device) -> GGUFFile:
        return synthesise_in_memory(self.preset, self.layers, "q4_0", self.vocabulary, DeviceWeights(device))


MIXTRAL, LITE = SUBJECTS = (Subject("mixtral-8x7b"), Subject("deepseek-v2-lite"))


def point(subject: Subject, placement: str) -> str:
    """The key of a result."""
    return f"{subject.preset}, q4_0, {placement}"


def measure(
    backend: CudaBackend, subject: Subject, file: GGUFFile, placement: str, limits: Mapping[str, float]
) -> dict[str, Any]:
    """Tokens per second; where all is on the device, also shares of its limits, and the host's own time for a step."""
    length = subject.prompt + SHORT + subject.decode
    model = graphrt.load(
        file,
        backends=[backend, "cpu"],
        gpu_layers=999,
        overrides=PLACEMENTS[placement],
        n_ctx=length,
        n_ubatch=subject.prompt,
    )
    with model, model.contexts.lend() as context:
        tokens = np.random.default_rng(0).integers(0, context.decoder.vocabulary_size, length).tolist()
        prompt = _seconds(context, [], [tokens[: subject.prompt]])
        steps = [[token] for token in tokens[SHORT : SHORT + subject.decode]]
        decode = _seconds(context, tokens[:SHORT], steps)
        found = {
            "prompt_tokens_per_second": subject.prompt / prompt,
            "decode_tokens_per_second": subject.decode / decode,
        }
        if placement == "all":
            with waiting(backend) as waited:
                seconds = _seconds(context, tokens[:SHORT], steps, lambda: sum(waited))
            flops = sum(operations(file, subject.prompt, subject.prompt).values())
            nbytes = weight_bytes(file) + cache_bytes(file) * (SHORT + subject.decode / 2)
            found["prompt_share"] = flops / limits["flops"] / prompt
            found["decode_share"] = nbytes / limits["bytes"] / (decode / subject.decode)
            found["host_seconds_per_step"] = seconds / subject.decode
        return found


def _seconds(
    context: Context, before: list[int], batches: list[list[int]], apart: Callable[[], float] = lambda: 0.0
) -> float:
    """The median seconds of some batches one after the other, after others; less those of which `apart` tells."""
    found = []
    for _ in range(1 + ROUNDS):  # the first one compiles
        context.clear()
        if before:
            context.decode(Batch.of(before))
        start, at = time.perf_counter() - apart(), len(before)
        for batch in batches:
            context.decode(Batch.of(batch, at))
            at += len(batch)
        found.append(time.perf_counter() - apart() - start)
    return median(found[1:])


class _Timed(Event):
    """An event whose waits are timed."""

    def __init__(self, event: Event, waited: list[float]) -> None:
        self.event, self._waited = event, waited

    def wait(self) -> None:
        _timed(self.event.wait, self._waited)()


@contextmanager
def waiting(backend: CudaBackend) -> Iterator[list[float]]:
    """A list of the seconds that the host waits for the device; beginning a copy is the host's own work."""
    device, waited = backend.device, list[float]()
    record, wait_for = device.record, device.wait_for

    def unpacked(event: Event) -> None:
        wait_for(event.event if isinstance(event, _Timed) else event)

    with ExitStack() as stack:
        stack.enter_context(patch.object(device, "record", lambda: _Timed(record(), waited)))
        stack.enter_context(patch.object(device, "wait_for", unpacked))
        stack.enter_context(patch.object(device, "synchronize", _timed(device.synchronize, waited)))
        yield waited


def _timed(function: Callable[..., Any], waited: list[float]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            waited.append(time.perf_counter() - start)

    return call
