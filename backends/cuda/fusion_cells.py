"""Fusion of what a layer does to queries, keys and values before attention: rotations, norms, and writing cells."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from graphrt.backends.cuda.fusion_absorption import Absorption, absorption
from graphrt.backends.cuda.rope import LONGEST_NORM, MOST_JOBS, Job, run_jobs
from graphrt.patterns import Coming, Fused
from graphrt.splits import value_of
from graphrt.tensor import Tensor


def queries_and_cells(coming: Coming) -> Fused | None:
    """Ropes that turn alike, a norm of rows for the cache, and the set_rows of them: up to three jobs in one launch."""
    jobs: list[Job] = []
    for node in (coming.first, *coming.after_first()):
        members = _nodes_of(jobs)
        if node not in members:
            jobs += [job for job in _jobs_of(coming, node, members) if _fits(job, jobs)][:1]
        if not jobs or len(jobs) == MOST_JOBS:
            break
    nodes = _nodes_of(jobs)
    absorptions = (absorption(coming, job, nodes) for job in jobs)
    absorbed = next((found for found in absorptions if found is not None), None)
    if absorbed is not None:
        return _with_absorbed(jobs, absorbed)
    if len(nodes) < 2:
        return None
    return Fused(tuple(nodes), "queries and cells", lower=partial(run_jobs, jobs))


def _with_absorbed(jobs: list[Job], absorbed: Absorption) -> Fused:
    """The jobs, of which one turns queries, and what these become."""
    instead = [absorbed.job if job.work is absorbed.job.work else job for job in jobs]
    return Fused(
        (*_nodes_of(jobs), *absorbed.nodes),
        "absorbed queries and cells",
        absorbed.product.workspace,
        lower=lambda: [*absorbed.launches(), *run_jobs(instead)],
    )


def _nodes_of(jobs: list[Job]) -> list[Tensor]:
    return [node for job in jobs for node in job.nodes]


def _jobs_of(coming: Coming, node: Tensor, members: list[Tensor]) -> Iterator[Job]:
    """The jobs that a node could be, or begin, with these members before it; the better one first."""
    if node.op is None or not node.size or not coming.is_ready(node, members):
        return
    if node.op.name == "set_rows" and _is_into_a_cache(node):
        rows = node.srcs[1]
        if rows is not None and value_of(rows) not in members:
            yield Job(None, node)
    if node.op.name not in ("rope", "rms_norm"):
        return
    for store in coming.after_first():
        rows = store.srcs[1] if store.op is not None and store.op.name == "set_rows" else None
        if rows is None or value_of(rows) is not node:
            continue
        if any(src is not None and src.root is store.root for src in node.srcs):
            break  # blocks would write rows that others are yet to read
        whole = rows.is_dense and rows.size == node.size and node.rank <= 3 and _is_into_a_cache(store)
        if whole and coming.is_ready(store, [*members, node]) and coming.readers.are_within(node, [store]):
            yield Job(node, store)
        break
    if node.op.name == "rope":
        yield Job(node)


def _is_into_a_cache(store: Tensor) -> bool:
    """Whether a set_rows writes one row for each id, of some, into a table."""
    rows, ids = store.srcs[1], store.srcs[2]
    is_table = store.has_dense_rows and store.rank == 2
    return is_table and rows is not None and rows.rank == 2 and rows.size > 0 and ids is not None and ids.rank == 1


def _fits(job: Job, jobs: list[Job]) -> bool:
    """Whether a job can be one of a launch with others: over the same tokens, turning alike, to the same cells."""
    if job.store is not None and _rows(job) != job.tokens:
        return False
    if job.norms and job.source.shape[-1] > LONGEST_NORM:
        return False
    for other in jobs:
        if job.tokens != other.tokens or (job.norms and other.norms):
            return False
        if job.turns and other.turns and _turning(job) != _turning(other):
            return False
        if job.store is None or other.store is None:
            continue
        if job.store.srcs[2] is not other.store.srcs[2] or _overlap(job.store, other.store):
            return False
    return True


def _rows(job: Job) -> int:
    """Rows that a job stores."""
    ids = job.store.srcs[2] if job.store is not None else None
    return ids.size if ids is not None else 0


def _turning(job: Job) -> tuple[object, ...]:
    """What must be the same of ropes in one launch: everything but where in a row they begin."""
    assert job.work is not None
    params = {key: value for key, value in job.work.params.items() if key not in ("first", "dims")}
    width = job.work.params["dims"] or job.work.shape[-1] - job.work.params["first"]
    return (width, *params.items(), *job.work.srcs[1:])


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two set_rows write the same columns of one table."""
    if a.root is not b.root:
        return False
    (start_a, end_a), (start_b, end_b) = map(_columns, (a, b))
    return start_a < end_b and start_b < end_a


def _columns(store: Tensor) -> tuple[int, int]:
    """The bytes of a table's row that a set_rows writes."""
    rows = store.srcs[1]
    assert rows is not None
    start = store.offset % max(1, store.strides[0]) + store.dtype.row_bytes(store.params["first"] or 0)
    return start, start + store.dtype.row_bytes(rows.shape[-1])
