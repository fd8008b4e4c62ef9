"""One layer's MLA attention in every form, over tokens and contexts: `python -m docs.benchmarks.mla_grid --threads 2`.

At each point tokens are written to the last cells of a cache of random latents, and attend to all of it. The forms take
turns, the least time of each counts; auto takes the time of the form that it chooses. Forms that would take longer than
--limit by the cost model are left out. Results are kept in mla_grid.json, so that a run that was stopped goes on, and
shown in mla_grid.md and mla_grid.png.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

import graphrt
from docs.benchmarks.mla_grid_report import page, plot
from graphrt import Graph, Plan, constant, dtypes
from graphrt.dtypes import Array, DType
from graphrt.models.kv_cache import KVCache
from graphrt.models.mla import LatentAttention, LatentCacheAttention
from graphrt.models.mla_cost import NAMES, Heads, seen
from graphrt.models.mla_expansion import LatentExpansion
from graphrt.models.synth import describe
from graphrt.models.ubatch import UBatch
from graphrt.testing import random_blocks

MODELS = {"V2-Lite": "deepseek-v2-lite", "V3": "deepseek-v3"}
CACHES = ("f16", "q8_0")
TOKENS = (1, 4, 16, 64, 128, 256, 512, 2048)
CONTEXTS = (512, 2048, 8192, 32768, 65536)
WEIGHTS = dtypes.q8_0
ROUNDS, LONG_ROUNDS, LONG = 7, 2, 0.2  # forms that take more seconds than LONG are run less often
MEMORY = 1 << 30  # bytes that the scores of pp-opt or the cache of naive may take
RESULTS = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class Point:
    """Where to measure."""

    model: str
    cache: str
    tokens: int
    cells: int

    def __str__(self) -> str:
        return f"{self.model}, {self.cache}, {self.tokens} x {self.cells}"


def points() -> Iterator[Point]:
    for model in MODELS:
        for dtype in CACHES:
            yield from (
                Point(model, dtype, tokens, cells) for cells in CONTEXTS for tokens in TOKENS if tokens <= cells
            )


class Expanding(LatentCacheAttention):
    """Expands for any number of tokens."""

    def expands(self, batch: UBatch) -> bool:
        return True


class Grid:
    """Measures points.

    Args:
        threads: of the CPU backend.
        limit: seconds that a form may take by the cost model.
    """

    def __init__(self, threads: int, limit: float) -> None:
        self.threads, self.limit = graphrt.Settings.from_env(threads=threads).thread_count, limit

    def measure(self, point: Point) -> dict[str, Any]:
        """Seconds of each form, the form that auto takes, and what was left out with its estimate."""
        estimates = self.estimates(point)
        forms = [form for form, seconds in estimates.items() if seconds <= self.limit]
        plans = [self.plan(point, form) for form in forms]
        for plan in plans:
            plan.execute()
        least = [inf] * len(plans)
        for done in range(ROUNDS):
            for number, plan in enumerate(plans):
                if done < LONG_ROUNDS or least[number] < LONG:
                    start = time.perf_counter()
                    plan.execute()
                    least[number] = min(least[number], time.perf_counter() - start)
        left_out = {form: seconds for form, seconds in estimates.items() if form not in forms and seconds < inf}
        return {"seconds": dict(zip(forms, least, strict=True)), "auto": self.choice(point), "left_out": left_out}

    def estimates(self, point: Point) -> dict[str, float]:
        """Seconds of each form by the cost model; infinite where it would take too much memory."""
        attention, heads, (tokens, cells) = self.auto(point), heads_of(point.model), (point.tokens, point.cells)
        model = attention.chooser.model(0, attention.expansion, dtypes.get(point.cache))
        found = {name: model.seconds(way, tokens, cells) for way, name in NAMES.items()}
        if point.cache != "f16":
            return found
        products = heads.attention("expand", seen(tokens, cells)) / model.rates.expand.at(tokens)
        naive_bytes = 2 * cells * heads.count * (heads.nope + heads.rope + heads.value)
        score_bytes = 4 * heads.count * tokens * cells
        found["naive"] = products if naive_bytes <= MEMORY else inf
        found["pp-opt"] = 2 * model.seconds("absorb", tokens, cells) if score_bytes <= MEMORY else inf
        return found

    def choice(self, point: Point) -> str:
        """The form that auto takes."""
        attention, dtype = self.auto(point), dtypes.get(point.cache)
        return NAMES[attention.chooser.choose(0, attention.expansion, dtype, point.tokens, point.cells).way]

    def auto(self, point: Point) -> LatentAttention:
        """The layer's attention that chooses."""
        return attention_of(self.load(point, "auto"))

    def load(self, point: Point, mla: str) -> graphrt.Model:
        """A layer of the model, described only."""
        file = describe(MODELS[point.model], layers=1, dtype=WEIGHTS.name)
        return graphrt.load(file, mla=mla, cache_type=point.cache, n_ctx=point.cells, threads=self.threads)

    def plan(self, point: Point, form: str) -> Plan:
        """The attention of the layer, with its writes to the cache."""
        model, heads = self.load(point, form), heads_of(point.model)
        cells = KVCache(1, point.cells, model.decoder.cache_layout, point.cache)
        for part in cells.states:
            part.data[...] = filled(part.shape, part.dtype)
        where = np.arange(point.cells)
        cells.cells.occupy(where, where, np.zeros(point.cells, np.int64))
        batch = UBatch.make(cells, point.tokens, point.tokens, point.cells)
        attention, count = attention_of(model), point.tokens
        if form == "flashmla2":
            attention = Expanding(**vars(attention))
        q = constant("q", filled((count, heads.count, heads.nope + heads.rope), dtypes.f32))
        latent = constant("latent", filled((count, 1, heads.rank), dtypes.f32))
        k_pe = constant("k_pe", filled((count, 1, heads.rope), dtypes.f32))
        plan = model.scheduler.plan(Graph(attention.attend(q, latent, k_pe, batch)))
        last = where[-count:]
        inputs = {"inp_pos": last, "inp_cells": last, "inp_kq_mask": np.where(where > last[:, None], -np.inf, 0)}
        for name in inputs.keys() & plan.graph.inputs.keys():
            plan.input(name)[...] = inputs[name]
        return plan


def attention_of(model: graphrt.Model) -> LatentAttention:
    """The layer's attention, with values in its k_b and v_b."""
    attention = model.decoder.layers[0].attention
    assert isinstance(attention, LatentAttention)
    return replace(attention, expansion=expansion(attention.chooser.heads))


@cache
def heads_of(model: str) -> Heads:
    return attention_of(graphrt.load(describe(MODELS[model], layers=1), mla="auto")).chooser.heads


@cache
def expansion(heads: Heads) -> LatentExpansion:
    keys = graphrt.weight("k_b", filled((heads.count, heads.rank, heads.nope), WEIGHTS))
    values = graphrt.weight("v_b", filled((heads.count, heads.value, heads.rank), WEIGHTS))
    return LatentExpansion(None, keys, values)


def filled(shape: tuple[int, ...], dtype: DType) -> Array:
    """Random values, a few thousand over and over: which ones does not matter to time."""
    generator, blocks = np.random.default_rng(0), (*shape[:-1], shape[-1] // dtype.block)
    if dtype.is_quantized:
        return np.resize(random_blocks(generator, (4093, dtype.block), dtype, scale=0.1).reshape(-1), blocks)
    return np.resize((0.1 * generator.standard_normal(4093, np.float32)).astype(dtype.numpy), blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=0, help="of the CPU backend; 0: all processors")
    parser.add_argument("--limit", type=float, default=2.0, help="seconds that a form may take at a point")
    parser.add_argument("--model", choices=list(MODELS), action="append", help="only these; repeatable")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    arguments = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() and not arguments.fresh else {}
    grid = Grid(arguments.threads, arguments.limit)
    for point in points():
        if str(point) not in results and point.model in (arguments.model or MODELS):
            results[str(point)] = grid.measure(point)
            print(f"{point}: {results[str(point)]}", flush=True)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(page(results, grid.threads))
    plot(results, RESULTS.with_suffix(".png"))


if __name__ == "__main__":
    main()
