"""A context: one KV cache, and the compiled plans that run a model's graph over it.

A prompt goes through in ubatches. A plan is compiled for each number of tokens, of rows with logits, and of visible
cells (these in buckets); decoding token after token reuses one plan: small arrays are written, the plan runs, a row is
read. The cells' table is read where it lies, so that nothing in a step grows with the context but attention itself.
On asynchronous devices the ubatches of a prompt overlap, so that each device works on one of them.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from zlib import crc32

import numpy as np

from graphrt import Graph, Plan, Scheduler, SharedArena
from graphrt.dtypes import Array
from graphrt.errors import Cancelled, GraphError
from graphrt.graph import Phase
from graphrt.models.batch import Batch, extremes
from graphrt.models.blocks import Decoder
from graphrt.models.kv_cache import CacheShape, KRotation, KVCache
from graphrt.models.kv_file import KVFile
from graphrt.models.sequences import Sequences
from graphrt.models.ubatch import UBatch
from graphrt.ops.attention import visible
from graphrt.pipeline import Pipeline
from graphrt.plan import Watch

MAX_PLANS = 64  # compiled plans that a context keeps; prompts of ever other lengths would else fill the memory

Progress = Callable[[int, int], None]
_Run = tuple[int, int, int, Phase]  # what a graph is made for: tokens, rows with logits, visible cells, phase


class _Step:
    """A compiled plan with its inputs' memory at hand."""

    def __init__(self, plan: Plan, gives_logits: bool) -> None:
        self.plan = plan
        self.execute = plan.execute
        self.logits = plan.output() if gives_logits else None
        self._inputs = {name: plan.input(name) for name in plan.graph.inputs}
        self.mask = self._inputs.get("inp_kq_mask")

    def set(self, name: str, values: Array) -> None:
        """Write an input; one that the graph does not read (a graph without logits has fewer) is passed over."""
        memory = self._inputs.get(name)
        if memory is not None:
            memory[...] = values


class Context(Sequences):
    """One KV cache and the plans over it; not to be used by two threads at once, but for `cancel`.

    Args:
        decoder: the model.
        scheduler: makes the plans.
        size: cells of the cache: n_ctx.
        cache_type: dtype of the cache.
        ubatch: the most tokens in one run of a graph.
        k_rotation: whether the decoder's graph puts keys into the cache "roped" or "unroped".
        kv_file: a file to keep the cache in; one that is there is gone on from.
        architecture: the model's, for the states and files that it makes.
    Attributes:
        watch: is shown every node's result, watch(node, array), where it is set; a return of False stops the run. Then
            ubatches do not overlap.
        progress: is told of a batch of several ubatches, progress(tokens done, tokens in all), where it is set.
        last_plan: of the ubatch that ran last; it can be profiled.
    Raises: SettingsError if the cache cannot be of that type, or the file is in use or of no room; FormatError if the
        file is damaged, or of another model or size.
    """

    def __init__(
        self,
        decoder: Decoder,
        scheduler: Scheduler,
        size: int,
        cache_type: str = "f16",
        ubatch: int = 512,
        *,
        k_rotation: KRotation = "roped",
        kv_file: str | Path | None = None,
        architecture: str = "",
    ) -> None:
        numbers = (len(decoder.layers), size, decoder.cache_layout, cache_type, k_rotation)
        shape = CacheShape(*numbers)
        identity = {"architecture": architecture, "weights": _fingerprint(decoder), **shape.identity}
        self._file = None if kv_file is None else KVFile(kv_file, identity, shape)
        memory = None if self._file is None else self._file.arrays
        super().__init__(KVCache(*numbers, memory), scheduler, identity)
        self.decoder = decoder
        self.ubatch = ubatch
        self.watch: Watch | None = None
        self.progress: Progress | None = None
        self.last_plan: Plan | None = None
        self._cancelled = self._is_closed = self._is_reserved = False
        self._pipeline: Pipeline | None = None  # of the present `decode`, if its ubatches overlap
        self._arena = SharedArena()
        self._steps: dict[tuple[int, int, int, Phase, bool], _Step] = {}
        if scheduler.settings.sched_debug:
            print(self.cache.describe(), file=sys.stderr)

    def close(self) -> None:
        """Write the cache's file to the disk and let it go; the context is of no use afterwards."""
        self._is_closed = True
        if self._file is not None:
            self._file.close()

    def decode(self, batch: Batch) -> Array:
        """Run a batch: its tokens are added to the cache.

        Returns: [R, V] f32, the logits of the R tokens that want them, in order; the next call may overwrite them.
        Raises: GraphError if a token, position or sequence is out of range, or if the context has too few free cells;
            Cancelled by `cancel` or `watch`: the cells of the ubatch that ran are then free again.
        """
        self._check(batch)
        self._cancelled = False
        if len(batch) <= self.ubatch:
            return self._run(batch)
        parts = [batch[start : start + self.ubatch] for start in range(0, len(batch), self.ubatch)]
        is_asynchronous = any(backend.asynchronous for backend in self.scheduler.backends)
        way = self._overlapping if is_asynchronous and self.watch is None else self._one_by_one
        logits: list[Array] = []
        self._tell(0, len(batch))
        with closing(way(parts)) as results:
            for result in results:
                logits.append(result)
                self._tell(sum(map(len, parts[: len(logits)])), len(batch))
        return np.concatenate(logits)

    def cancel(self) -> None:
        """Stop the present `decode`, from any thread, at the next split, copy or ubatch."""
        self._cancelled = True
        running = self.last_plan if self._pipeline is None else self._pipeline
        if running is not None:
            running.cancel()

    def prepare(self, tokens: int) -> None:
        """Compile the plans of a prompt of so many tokens, and of one token after it, ahead of their runs.

        Raises: GraphError if the context has too few free cells.
        """
        taken = self.cells.find(tokens)
        runs: list[_Run] = []
        for start in range(0, tokens, self.ubatch):
            part = taken[start : start + self.ubatch]
            is_last = start + len(part) == tokens
            runs.append((len(part), int(is_last), self.cells.visible_with(part), _phase_of(len(part))))
        del runs[MAX_PLANS - 1 :]  # of a prompt of very many ubatches, the rest when they run
        if self.cells.used + tokens < self.size:
            runs.append((1, 1, self.cells.visible_with(self.cells.find(tokens + 1)), "decode"))
        self._compile(runs)

    def _one_by_one(self, parts: Sequence[Batch]) -> Iterator[Array]:
        """The logits of each ubatch, which runs when they are asked for."""
        for part in parts:
            yield self._run(part).copy()

    def _overlapping(self, parts: Sequence[Batch]) -> Iterator[Array]:
        """The logits of each ubatch; those after it are begun before it is done, one for each device and one more."""
        depth = 1 + sum(backend.asynchronous for backend in self.scheduler.backends)
        pipeline = self._pipeline = Pipeline(depth)
        begun: deque[tuple[Batch, Array]] = deque()  # with their cells
        try:
            for part in parts:
                if len(begun) == depth:
                    yield self._finish(pipeline, begun)
                begun.append((part, self.cells.find(len(part))))
                pipeline.submit(self._set_inputs(*begun[-1]).plan)
            while begun:
                yield self._finish(pipeline, begun)
        except BaseException:
            pipeline.abandon()
            for _, taken in begun:
                self.cells.release(taken)
            raise
        finally:
            self._pipeline = None

    def _finish(self, pipeline: Pipeline, begun: deque[tuple[Batch, Array]]) -> Array:
        """Wait for the oldest ubatch under way; returns its logits."""
        outputs = pipeline.result()
        batch, taken = begun.popleft()
        self.cells.settle(taken, batch.tokens)
        return outputs[0] if batch.want_logits.any() else self._no_logits()

    def _run(self, batch: Batch) -> Array:
        taken = self.cells.find(len(batch))
        try:
            step = self._set_inputs(batch, taken)
            step.execute() if self.watch is None else step.plan.observe(self.watch)
        except BaseException:
            self.cells.release(taken)
            raise
        self.cells.settle(taken, batch.tokens)
        return step.logits if step.logits is not None else self._no_logits()

    def _set_inputs(self, batch: Batch, taken: Array) -> _Step:
        """Give a ubatch's tokens their cells, and write its inputs; returns its plan, to be run at once."""
        cells = self.cells
        seen = cells.visible_with(taken)
        step = self._step(len(batch), int(np.count_nonzero(batch.want_logits)), seen, batch.phase)
        cells.occupy(taken, batch.pos, batch.seq_ids)
        step.set("inp_tokens", batch.tokens)
        step.set("inp_pos", batch.pos)
        step.set("inp_seq", batch.seq_ids)
        step.set("inp_cells", taken)
        step.set("inp_out_ids", batch.want_logits.nonzero()[0])
        if step.mask is not None:
            sees = visible(batch.pos, batch.seq_ids, cells.positions[:seen], cells.sequences[:seen], 0)
            step.mask[...] = np.where(sees, 0, -np.inf)
        step.plan.forget_cancel()  # one that came after an earlier run; what is asked from here on stops this one
        self.last_plan = step.plan
        if self._cancelled:
            raise Cancelled("[context] the run was cancelled between two ubatches")
        return step

    def _no_logits(self) -> Array:
        return np.empty((0, self.decoder.vocabulary_size), np.float32)

    def _step(self, *run: *_Run) -> _Step:
        self._compile([run])
        return self._steps[*run, self.cells.is_shifted]

    def _compile(self, runs: Sequence[_Run]) -> None:
        """Compile the plans of runs that are new, all at once."""
        shifted = self.cells.is_shifted
        missing = [run for run in dict.fromkeys(runs) if (*run, shifted) not in self._steps]
        if not missing:
            return
        if len(self._steps) + len(missing) > MAX_PLANS:
            self._steps.clear()
            self.scheduler.clear()
            missing = list(dict.fromkeys(runs))
        for run, plan in zip(missing, self._plans(missing), strict=True):
            self._steps[*run, shifted] = _Step(plan, gives_logits=run[1] > 0)

    def graph(self, tokens: int, rows: int, cells: int, phase: Phase | None = None) -> Graph:
        """The graph of so many tokens, of which `rows` get logits, that look at so many cells.

        With no rows it only fills the cache. One token is a phase of decoding, more are a prompt, if none is given.
        """
        batch = UBatch.make(self.cache, tokens, rows, cells, self.cells.is_shifted)
        return self.decoder.graph(batch, phase or _phase_of(tokens))

    def plan(self, tokens: int, rows: int, cells: int, phase: Phase | None = None) -> Plan:
        """That graph, compiled, over memory that all plans of this context share."""
        return self._plans([(tokens, rows, cells, phase or _phase_of(tokens))])[0]

    def _plans(self, runs: Sequence[_Run]) -> list[Plan]:
        self._reserve()
        plans = self.scheduler.plans((self.graph(*run) for run in runs), self._arena)
        for plan in plans if self._file is not None else ():
            self._file.require_host(plan.schedule.placements)
        return plans

    def _reserve(self) -> None:
        """Take memory for a full ubatch at once: plans of ever more tokens would each leave a smaller buffer behind."""
        if self._is_reserved:
            return
        for tokens in (self.ubatch, 1):
            self.scheduler.reserve(self.graph(min(tokens, self.size), 1, self.size), self._arena)
        self._is_reserved = True

    def _tell(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(done, total)

    def _check(self, batch: Batch) -> None:
        if self._is_closed:
            raise GraphError("[context] is closed; make another one")
        if not len(batch):
            raise GraphError("[context] the batch is empty; give at least one token")
        vocabulary = self.decoder.vocabulary_size
        for token in extremes(batch.tokens):
            if not 0 <= token < vocabulary:
                raise GraphError(f"[context] token id {token} is out of range; the model has ids 0 to {vocabulary - 1}")
        batch.require_order(self.cells.last)
        self.cells.require_free(len(batch))


def _fingerprint(decoder: Decoder) -> int:
    """A number that tells models of one shape apart, by a few of their weights; 0 where these have no data."""
    norm, embedding = decoder.output_norm.weight.data, decoder.embedding.data
    if norm is None or embedding is None:
        return 0
    return crc32(np.ascontiguousarray(embedding[:: max(1, len(embedding) // 8)]), crc32(np.ascontiguousarray(norm)))


def _phase_of(tokens: int) -> Phase:
    """The phase of so many tokens of one sequence."""
    return "decode" if tokens == 1 else "prompt"
