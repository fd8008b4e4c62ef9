"""The rates of a machine for multi-head latent attention: measured once for each kind of attention, then kept on disk.

The ops that a model will run are timed with its own shapes and dtypes, over few cells and heads, in a second or two.
Where that leaves open which way is faster, both are tried at the layer's size. All is measured anew when kernels,
threads or the machine change, and by `graphrt tune`.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf

import numpy as np

import graphrt
from graphrt import Graph, Scheduler, constant, dtypes, ops
from graphrt.backend import Backend
from graphrt.buffer import HOST
from graphrt.dtypes import DType
from graphrt.kept import Kept
from graphrt.models.mla_choice import Kind
from graphrt.models.mla_cost import THEORY, Curve, Rates
from graphrt.tensor import Tensor
from graphrt.testing import random_blocks

FILE = "mla.json"
CURVES = ("absorb", "expand", "products")
# Runs are short, and the least time of many counts: a busy machine leaves some runs alone.
HEADS = 2  # at least, of those that expand; the rate does not depend on their number
CELLS = 512
TOKENS = (1, 16, 32, 64, 128, 256)  # that expand, or whose queries and values are products
ABSORBED = 8192  # rows of queries, tokens times heads, at most: more than caches hold
READ = 32 << 20  # bytes of cells, more than caches hold
SAMPLE = 4093  # random values or blocks, a prime number
ROUNDS = 24
SECONDS = 1.2  # for all rounds but the first ones
LEAST_ROUNDS = 3


class MeasuredRates:
    """Tells the rates of attention on the backend where a layer's cache lives.

    Args:
        scheduler: of the model.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._known: dict[tuple[str, Kind], Rates] = {}
        self._tried: dict[tuple[str, Kind, int, int], float] = {}

    def __call__(self, layer: int, kind: Kind, measure: bool) -> Rates:
        """Rates that are known, kept, or, with `measure`, measured now; of a device, its own word."""
        backend = self._backend(layer)
        if backend.speed is not None:
            return Rates.of(*backend.speed, f"by {backend.name}'s rates")
        if not _can_be_measured(backend):
            return THEORY
        key = (backend.name, kind)
        if key not in self._known:
            kept = self._kept(backend, kind)
            if kept is None and not measure:
                return THEORY
            self._known[key] = kept or self.measure(backend, kind)
        return self._known[key]

    def trial(self, layer: int, kind: Kind, tokens: int, cells: int) -> float | None:
        """Seconds of expanding over those of absorbing: known, kept, or measured now; None of a device."""
        backend = self._backend(layer)
        if backend.speed is not None or not _can_be_measured(backend):
            return None
        key = (backend.name, kind, tokens, cells)
        if key not in self._tried:
            self._tried[key] = self._try(backend, kind, tokens, cells)
        return self._tried[key]

    def measure(self, backend: Backend, kind: Kind) -> Rates:
        """Measure now, and keep."""
        rates = self._stopwatch(backend, kind).rates()
        curves = {name: getattr(rates, name).points for name in CURVES}
        self._store(backend).put(str(kind), {**curves, "read": rates.read})
        return rates

    def _try(self, backend: Backend, kind: Kind, tokens: int, cells: int) -> float:
        """A trial's result, kept beside the rates, so that it is forgotten when these are measured anew."""
        store, name = self._store(backend), f"{tokens} x {cells}"
        rates = store.get(str(kind))
        record = rates if isinstance(rates, dict) else {}
        tried = record.get("tried")
        trials = tried if isinstance(tried, dict) else {}
        lead = trials.get(name)
        if not isinstance(lead, float) or not 0 < lead < inf:
            lead = self._stopwatch(backend, kind).trial(tokens, cells)
            store.put(str(kind), {**record, "tried": {**trials, name: lead}})
        return lead

    def _backend(self, layer: int) -> Backend:
        return self._scheduler.home(f"cache_latent-{layer}")

    def _stopwatch(self, backend: Backend, kind: Kind) -> Stopwatch:
        threads = self._scheduler.settings.threads
        return Stopwatch(Scheduler([backend], overrides=(), threads=threads, sched_debug=0), kind)

    def _kept(self, backend: Backend, kind: Kind) -> Rates | None:
        """What was measured before; None where nothing was, or what is there cannot be."""
        found = self._store(backend).get(str(kind))
        with suppress(TypeError, ValueError, KeyError):
            curves = {name: Curve(tuple((float(rows), float(rate)) for rows, rate in found[name])) for name in CURVES}
            rates = Rates(**curves, read=float(found["read"]), origin="measured")
            if rates.is_sound:
                return rates
        return None

    def _store(self, backend: Backend) -> Kept:
        threads = self._scheduler.settings.thread_count
        machine = f"{platform.node()} {platform.machine()}, {backend.name} with {threads} threads"
        return Kept(FILE, machine, f"{graphrt.__version__} {backend.version}")


def _can_be_measured(backend: Backend) -> bool:
    return backend.memory == HOST and backend.name != "reference"


@dataclass(frozen=True)
class Sample:
    """Something to time: a graph, how many rows it works on at a time, and its operations."""

    graph: Graph
    rows: int
    flops: float


@dataclass(frozen=True)
class Stopwatch:
    """Times the ops of one kind of attention; for rates, all tokens see all cells.

    Args:
        scheduler: makes their plans.
        kind: shapes and dtypes.
    """

    scheduler: Scheduler
    kind: Kind

    def rates(self) -> Rates:
        """All rates; tells a person at a terminal what takes so long."""
        if sys.stderr.isatty():
            print(f"measuring once how fast attention is here: {self.kind}", file=sys.stderr, flush=True)
        shape = self.kind.heads
        cell_bytes = self.kind.cache.row_bytes(shape.rank + shape.rope)
        samples = {
            "absorb": [self._absorbing(tokens, self.kind.heads.count, CELLS) for tokens in self._absorbed()],
            "expand": [self._expanding(tokens) for tokens in TOKENS],
            "products": [self._products(tokens) for tokens in TOKENS],
            "read": [self._absorbing(1, 1, READ // cell_bytes)],
        }
        seconds = in_turns(self._runs([sample.graph for each in samples.values() for sample in each]))
        curves = {
            name: Curve(tuple((sample.rows, sample.flops / next(seconds)) for sample in each))
            for name, each in samples.items()
        }
        reading = curves.pop("read").points[0][1] / shape.attention("absorb", 1) * shape.count
        return Rates(**curves, read=reading * cell_bytes, origin="measured")

    def trial(self, tokens: int, cells: int) -> float:
        """Seconds of expanding over those of absorbing, all heads, tokens in the last of the cells."""
        if sys.stderr.isatty():
            print(f"trying once both ways of attention, {tokens} x {cells}: {self.kind}", file=sys.stderr, flush=True)
        shape = self.kind.heads
        q, latents = _filled("q", (tokens, shape.count, shape.nope + shape.rope)), self._latents(cells)
        weights, where = self._weights(shape.count), _seen(tokens, cells, cells - tokens)
        order = self.kind.keys_transposed
        expanded = ops.mla_attention(q, latents, *weights, *where, scale=0.1, keys_transposed=order)
        mixed = ops.attention(self._absorb(q), latents, latents[..., : shape.rank], *where, scale=0.1)
        absorbed = ops.mul_mat(weights[1], mixed.permute(1, 0, 2))
        absorbing, expanding = in_turns(self._runs([Graph(absorbed), Graph(expanded)]))
        return expanding / absorbing

    def _absorb(self, q: Tensor) -> Tensor:
        """Queries [T, H, dn + dr] in the latents' space, [T, H, r + dr]."""
        nope, keys = self.kind.heads.nope, self._weights(self.kind.heads.count)[0]
        product = ops.mul_mat if self.kind.keys_transposed else ops.mul_mat_transposed
        return ops.concat(product(keys, q[..., :nope].permute(1, 0, 2)).permute(1, 0, 2), q[..., nope:], axis=-1)

    @property
    def _heads(self) -> int:
        # Fewer heads than twice the threads are cut up among them by cells, at a cost that whole models do not have.
        return min(self.kind.heads.count, max(HEADS, 2 * self.scheduler.settings.thread_count))

    def _absorbed(self) -> Iterator[int]:
        """Tokens, each twice those before, until all their queries are ABSORBED."""
        tokens = 1
        while tokens == 1 or tokens * self.kind.heads.count <= ABSORBED:
            yield tokens
            tokens *= 2

    def _absorbing(self, tokens: int, heads: int, cells: int) -> Sample:
        shape = replace(self.kind.heads, count=heads)
        q = _filled("q", (tokens, heads, shape.rank + shape.rope))
        latents = self._latents(cells)
        y = ops.attention(q, latents, latents[..., : shape.rank], *_seen(tokens, cells, cells), scale=0.1)
        return Sample(Graph(y), tokens * heads, shape.attention("absorb", tokens * cells))

    def _expanding(self, tokens: int) -> Sample:
        shape = replace(self.kind.heads, count=self._heads)
        q = _filled("q", (tokens, shape.count, shape.nope + shape.rope))
        weights, where, order = self._weights(self._heads), _seen(tokens, CELLS, CELLS), self.kind.keys_transposed
        y = ops.mla_attention(q, self._latents(CELLS), *weights, *where, scale=0.1, keys_transposed=order)
        return Sample(Graph(y), tokens, shape.products(CELLS) + shape.attention("expand", tokens * CELLS))

    def _products(self, tokens: int) -> Sample:
        """All that absorbing does beside attention: queries go to the latents' space, and mixes become values.

        Through the weights of all heads, since those of a few would stay in caches.
        """
        shape = self.kind.heads
        q = _filled("q", (tokens, shape.count, shape.nope + shape.rope))
        latents = _filled("latents", (tokens, shape.count, shape.rank)).permute(1, 0, 2)
        graph = Graph((self._absorb(q), ops.mul_mat(self._weights(shape.count)[1], latents)))
        return Sample(graph, tokens, shape.products(tokens))

    def _weights(self, heads: int) -> tuple[Tensor, Tensor]:
        kind, shape = self.kind, self.kind.heads
        keys = (heads, shape.rank, shape.nope) if kind.keys_transposed else (heads, shape.nope, shape.rank)
        values = (heads, shape.value, shape.rank)
        return _filled("keys", keys, kind.keys), _filled("values", values, kind.values)

    def _latents(self, cells: int) -> Tensor:
        return _filled("cells", (cells, 1, self.kind.heads.rank + self.kind.heads.rope), self.kind.cache)

    def _runs(self, graphs: Sequence[Graph]) -> list[Callable[[], None]]:
        """What runs each graph."""
        return [plan.execute for plan in self.scheduler.plans(graphs)]


def in_turns(runs: Sequence[Callable[[], None]]) -> Iterator[float]:
    """The least seconds of each run; they take turns, so that a busy moment does not fall on one of them alone."""
    for run in runs:
        run()
    least, end = [inf] * len(runs), time.perf_counter() + SECONDS
    for done in range(ROUNDS):
        if done >= LEAST_ROUNDS and time.perf_counter() > end:
            break
        for number, run in enumerate(runs):
            start = time.perf_counter()
            run()
            least[number] = min(least[number], max(time.perf_counter() - start, 1e-9))
    return iter(least)


def _seen(tokens: int, cells: int, first: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens of one sequence from position `first` on: positions and sequences of tokens and of cells."""
    return (
        constant("q_pos", np.arange(first, first + tokens, dtype=np.int32)),
        constant("q_seq", np.zeros(tokens, np.int32)),
        constant("cell_pos", np.arange(cells, dtype=np.int32)),
        constant("cell_seq", np.ones(cells, np.int64)),
    )


def _filled(name: str, shape: tuple[int, ...], dtype: DType = dtypes.f32) -> Tensor:
    """Random values, the same few over and over."""
    generator, blocks = np.random.default_rng(0), (*shape[:-1], shape[-1] // dtype.block)
    if dtype.is_quantized:
        few = random_blocks(generator, (SAMPLE, dtype.block), dtype).reshape(-1)
    else:
        few = generator.standard_normal(SAMPLE, np.float32).astype(dtype.numpy)
    return constant(name, np.resize(few, blocks))
