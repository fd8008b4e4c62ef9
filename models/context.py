"""A context: one KV cache, and the compiled plans that run a model's graph over it.

A prompt goes through in ubatches. A plan is compiled for each number of tokens, of rows with logits, and of visible
cells (these in buckets); decoding token after token reuses one plan: small arrays are written, the plan runs, a row is
read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from graphrt import Graph, Plan, Scheduler, SharedArena
from graphrt.dtypes import Array
from graphrt.errors import Cancelled, GraphError
from graphrt.graph import Phase
from graphrt.models.blocks import Decoder, UBatch
from graphrt.models.kv_cache import MAX_SEQUENCES, KVCache
from graphrt.plan import Watch

MAX_POSITION = 1 << 31
MAX_PLANS = 64  # compiled plans that a context keeps; prompts of ever other lengths would else fill the memory


@dataclass(frozen=True)
class Batch:
    """Tokens to run, with where they stand and which of them need logits.

    Args:
        tokens: [T] ids.
        positions: [T], of each token in its sequence.
        sequences: [T], the sequence of each, 0 to 63.
        wanted: [T] bool, whose logits are asked for.
    """

    tokens: Array
    positions: Array
    sequences: Array
    wanted: Array

    @classmethod
    def of(cls, tokens: Sequence[int], start: int = 0, *, sequence: int = 0, all_logits: bool = False) -> Batch:
        """Tokens that follow each other in one sequence from position `start`; logits for all, or for the last."""
        count = len(tokens)
        wanted = np.zeros(count, bool)
        wanted[0 if all_logits else -1 :] = True
        positions = np.arange(start, start + count, dtype=np.int32)
        return cls(_token_ids(tokens), positions, np.full(count, sequence, np.int32), wanted)

    @property
    def phase(self) -> Phase:
        """Decoding if every token stands alone in its sequence, else a prompt: which override rules hold."""
        return "decode" if len(self) == 1 or len(np.unique(self.sequences)) == len(self) else "prompt"

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, part: slice) -> Batch:
        return Batch(self.tokens[part], self.positions[part], self.sequences[part], self.wanted[part])


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
        tokens, count = len(batch), int(np.count_nonzero(batch.wanted))
        taken = cells.find(tokens)
        step = self._step(tokens, count, cells.visible_with(taken), batch.phase)
        cells.occupy(taken, batch.positions, batch.sequences)
        try:
            step.set("inp_tokens", batch.tokens)
            step.set("inp_pos", batch.positions)
            step.set("inp_seq", batch.sequences)
            step.set("inp_cells", taken)
            step.set("inp_cell_pos", cells.positions[: step.cells])
            step.set("inp_cell_seq", cells.sequences[: step.cells])
            step.set("inp_out_ids", batch.wanted.nonzero()[0])
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
        for token in _extremes(batch.tokens):
            if not 0 <= token < vocabulary:
                raise GraphError(f"[context] token id {token} is out of range; the model has ids 0 to {vocabulary - 1}")
        for position in _extremes(batch.positions):
            if not 0 <= position < MAX_POSITION:
                raise GraphError(
                    f"[context] position {position} is out of range; positions are 0 to {MAX_POSITION - 1}"
                )
        for sequence in _extremes(batch.sequences):
            if not 0 <= sequence < MAX_SEQUENCES:
                raise GraphError(f"[context] sequence {sequence} is out of range; there are 0 to {MAX_SEQUENCES - 1}")
        self.cells.require_free(len(batch))


def _phase_of(tokens: int) -> Phase:
    """The phase of so many tokens of one sequence."""
    return "decode" if tokens == 1 else "prompt"


def _token_ids(tokens: Iterable[int]) -> Array:
    """Token ids as an array [T] of whole numbers."""
    found = np.asarray(tokens)
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise GraphError(f"[context] tokens must be a row of whole numbers, got {found.dtype} {list(found.shape)}")
    return found.astype(np.int64)


def _extremes(values: Array) -> tuple[int, int]:
    """Least and greatest; of the one token of a decoding step, lists find them far sooner than NumPy's reductions."""
    listed = values.tolist()
    return min(listed), max(listed)
