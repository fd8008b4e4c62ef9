"""A context: one KV cache, and the compiled plans that run a model's graph over it.

A prompt goes through in ubatches. A plan is compiled for each number of tokens, of rows with logits, and of visible
cells (these in buckets); decoding token after token reuses one plan: small arrays are written, the plan runs, a row is
read.
"""

from __future__ import annotations

import numpy as np

from graphrt import Graph, Plan, Scheduler, SharedArena
from graphrt.dtypes import Array
from graphrt.errors import Cancelled, GraphError
from graphrt.graph import Phase
from graphrt.models.batch import Batch, extremes
from graphrt.models.blocks import Decoder
from graphrt.models.kv_cache import KVCache
from graphrt.models.ubatch import UBatch
from graphrt.plan import Watch

MAX_PLANS = 64  # compiled plans that a context keeps; prompts of ever other lengths would else fill the memory


class _Step:
    """A compiled plan with its inputs' memory at hand."""

    def __init__(self, plan: Plan, cells: int, gives_logits: bool) -> None:
        self.plan = plan
        self.execute = plan.execute
        self.cells = cells
        self.logits = plan.output() if gives_logits else None
        self._inputs = {name: plan.input(name) for name in plan.graph.inputs}

    def set(self, name: str, values: Array) -> None:
        """Write an input; one that the graph does not read (a graph without logits has fewer) is passed over."""
        memory = self._inputs.get(name)
        if memory is not None:
            memory[...] = values


class Context:
    """One KV cache and the plans over it; not to be used by two threads at once, but for `cancel`.

    Args:
        decoder: the model.
        scheduler: makes the plans.
        size: cells of the cache: n_ctx.
        cache_type: dtype of the cache.
        ubatch: the most tokens in one run of a graph.
    Attributes:
        watch: is shown every node's result, watch(node, array), where it is set; a return of False stops the run.
        last_plan: of the ubatch that ran last; it can be profiled.
    Raises: SettingsError if the cache cannot be of that type.
    """

    def __init__(
        self, decoder: Decoder, scheduler: Scheduler, size: int, cache_type: str = "f16", ubatch: int = 512
    ) -> None:
        self.decoder = decoder
        self.scheduler = scheduler
        self.cache = KVCache(len(decoder.layers), size, decoder.cache_layout, cache_type)
        self.cells = self.cache.cells
        self.ubatch = ubatch
        self.watch: Watch | None = None
        self.last_plan: Plan | None = None
        self._cancelled = False
        self._arena = SharedArena()
        self._steps: dict[tuple[int, int, int, Phase], _Step] = {}

    @property
    def size(self) -> int:
        """Cells: the most tokens that all sequences together may have."""
        return self.cells.size

    def clear(self) -> None:
        """Forget every token."""
        self.cells.clear()

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
        parts = [self._run(batch[start : start + self.ubatch]).copy() for start in range(0, len(batch), self.ubatch)]
        return np.concatenate(parts)

    def cancel(self) -> None:
        """Stop the present `decode`, from any thread, at the next split, copy or ubatch."""
        self._cancelled = True
        if self.last_plan is not None:
            self.last_plan.cancel()

    def prepare(self, tokens: int) -> None:
        """Compile the plans of a prompt of so many tokens, and of one token after it, ahead of their runs.

        Raises: GraphError if the context has too few free cells.
        """
        taken = self.cells.find(tokens)
        for start in range(0, tokens, self.ubatch):
            part = taken[start : start + self.ubatch]
            is_last = start + len(part) == tokens
            self._step(len(part), int(is_last), self.cells.visible_with(part), _phase_of(len(part)))
        if self.cells.used + tokens < self.size:
            self._step(1, 1, self.cells.visible_with(self.cells.find(tokens + 1)), "decode")

    def _run(self, batch: Batch) -> Array:
        cells = self.cells
        tokens, count = len(batch), int(np.count_nonzero(batch.want_logits))
        taken = cells.find(tokens)
        step = self._step(tokens, count, cells.visible_with(taken), batch.phase)
        cells.occupy(taken, batch.pos, batch.seq_ids)
        try:
            step.set("inp_tokens", batch.tokens)
            step.set("inp_pos", batch.pos)
            step.set("inp_seq", batch.seq_ids)
            step.set("inp_cells", taken)
            step.set("inp_cell_pos", cells.positions[: step.cells])
            step.set("inp_cell_seq", cells.sequences[: step.cells])
            step.set("inp_out_ids", batch.want_logits.nonzero()[0])
            self.last_plan = step.plan
            if self._cancelled:
                raise Cancelled("[context] the run was cancelled between two ubatches")
            step.execute() if self.watch is None else step.plan.observe(self.watch)
        except BaseException:
            cells.release(taken)
            raise
        return step.logits if step.logits is not None else np.empty((0, self.decoder.vocabulary_size), np.float32)

    def _step(self, tokens: int, rows: int, cells: int, phase: Phase) -> _Step:
        key = (tokens, rows, cells, phase)
        if key not in self._steps:
            if len(self._steps) == MAX_PLANS:
                self._steps.clear()
                self.scheduler.clear()
            self._steps[key] = _Step(self.plan(*key), cells, gives_logits=rows > 0)
        return self._steps[key]

    def graph(self, tokens: int, rows: int, cells: int, phase: Phase | None = None) -> Graph:
        """The graph of so many tokens, of which `rows` get logits, that look at so many cells.

        With no rows it only fills the cache. One token is a phase of decoding, more are a prompt, if none is given.
        """
        return self.decoder.graph(UBatch.make(self.cache, tokens, rows, cells), phase or _phase_of(tokens))

    def plan(self, tokens: int, rows: int, cells: int, phase: Phase | None = None) -> Plan:
        """That graph, compiled, over memory that all plans of this context share."""
        return self.scheduler.plan(self.graph(tokens, rows, cells, phase), self._arena)

    def _check(self, batch: Batch) -> None:
        if not len(batch):
            raise GraphError("[context] the batch is empty; give at least one token")
        vocabulary = self.decoder.vocabulary_size
        for token in extremes(batch.tokens):
            if not 0 <= token < vocabulary:
                raise GraphError(f"[context] token id {token} is out of range; the model has ids 0 to {vocabulary - 1}")
        batch.require_order(self.cells.last)
        self.cells.require_free(len(batch))


def _phase_of(tokens: int) -> Phase:
    """The phase of so many tokens of one sequence."""
    return "decode" if tokens == 1 else "prompt"
